"""``--target-compression``: the budget is kept, and the predicted error is the one that the checkpoint has."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress import compress
from offline_compress.calibration.samples import load_samples
from offline_compress.calibration.statistics import KEPT_TOKENS
from offline_compress.ranks.layer_errors import COMPARED_SAMPLES
from offline_compress.ranks.rules import budget
from offline_compress.ranks.storage_grid import candidate_ranks
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import read_config

QUICK = {"calib_samples": 4, "calib_seqlen": 40}


@torch.no_grad()
def measured_error(dense, out, tokens: torch.Tensor) -> float:
    """What every layer's attention of ``out`` does to the inputs that the dense model gives it."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (dense, out)]
    errors = []
    for layer, latent in zip(*(model.model.layers for model in models), strict=True):
        seen = {}
        layer.self_attn.register_forward_hook(
            lambda _m, args, kwargs, result, seen=seen: seen.update(kwargs=kwargs, exact=result[0]), with_kwargs=True
        )
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _m, args, seen=seen: seen.update(stream=args[0])
        )
        errors.append((seen, latent.self_attn))
    total = 0.0
    for row in tokens:
        models[0](row[None], use_cache=False)
        for seen, attention in errors:
            other = attention(**seen["kwargs"])[0]
            total += ((other - seen["exact"]).square().sum(-1) / seen["stream"].square().sum(-1)).mean().item()
    return total / len(tokens)


@pytest.mark.parametrize(("family", "target", "options"), [
    ("qwen2", 5, {}),
    ("qwen3", 5, {}),
    ("phi3", 5, {}),
    ("mistral", 5, {"latent_bits_v": 8}),
    ("llama", 1.6, {"latent_bits": 16, "objective": "svd"}),
    ("llama", 6, {"hadamard": False, "value_path": "factored"}),
    ("qwen2", 5, {"group_size_k": 2, "group_size_v": 4}),
    ("qwen2", 1.6, {"group_size": 2, "reorder_heads": True, "latent_bits": 16}),
])  # fmt: skip
def test_the_budget_is_kept_and_the_error_is_as_predicted(tmp_path, text, dense, family, target, options):
    out = tmp_path / "out"
    report = compress(dense(family), out, target_compression=target, calib_data=text, **QUICK, **options)
    _, palu, geometry = read_config(out)
    allowed = report["dense_bytes_per_token"] / target
    assert report["bytes_per_token"] == palu.bytes_per_token(geometry, "float32") <= allowed
    assert report["bytes_per_token"] > 0.8 * allowed
    tokens = load_samples(text, dense(family), geometry and 300, 4, 40, 42).tokens[:COMPARED_SAMPLES, :KEPT_TOKENS]
    predicted = report["budget"]["predicted_error"]
    assert measured_error(dense(family), out, tokens) == pytest.approx(predicted, rel=0.03)
    assert json.loads((out / "palu_report.json").read_text()) == report
    assert palu.search == "budget"


def test_tiers_that_are_given_stay_and_the_rest_is_chosen(tmp_path, text, dense):
    options = {"calib_data": text, **QUICK}
    report = compress(dense("llama"), tmp_path / "out", bytes_per_token=150, tiers=((0.5, 8), (0.5, 2)), **options)
    assert [tier["bits"] for tier in report["tiers_k"]] == [tier["bits"] for tier in report["tiers_v"]] == [8, 2]
    free = compress(dense("llama"), tmp_path / "free", bytes_per_token=150, **options)
    assert free["budget"]["predicted_error"] <= report["budget"]["predicted_error"]
    assert len(free["budget"]["considered"]) > len(report["budget"]["considered"]) == 1


def test_the_report_says_what_plain_bits_would_do(tmp_path, text, dense):
    report = compress(dense("llama"), tmp_path / "out", target_compression=4, calib_data=text, **QUICK)
    plain = report["budget"]["plain_bits_per_token_and_head"]
    assert [plain[f"int{bits}"]["bytes_per_token"] for bits in (8, 4, 3, 2)] == [
        2 * 2 * 4 * (4 + 2 * n) for n in (8, 4, 3, 2)
    ]
    errors = [plain[f"int{bits}"]["predicted_error"] for bits in (8, 4, 3, 2)]
    assert errors == sorted(errors) and errors[0] > 0
    assert [plain[f"int{bits}"]["fits"] for bits in (8, 4, 3, 2)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_compression": 1000}, "the least that these options allow is"),
        ({"target_compression": 0.5}, "expected how many times fewer bytes"),
        ({"bytes_per_token": 0}, "expected at least 1"),
        ({"bytes_per_token": 100, "target_compression": 4}, "give one of them"),
        ({"target_compression": 4, "rank_ratio": 0.25}, "without --rank-ratio and --search"),
        ({"target_compression": 4, "search": "fisher"}, "without --rank-ratio and --search"),
        ({"target_compression": 4, "calib_data": None}, "add --calib-data"),
    ],
)
def test_budgets_that_cannot_be(tmp_path, text, dense, options, sentence):
    with pytest.raises(CompressionError, match=sentence):
        compress(dense("llama"), tmp_path / "out", **{"calib_data": text, **QUICK} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_ranks_near_the_best_are_never_worse(tmp_path, text, dense, family, monkeypatch):
    """And are within the budget; both choices are tried in attention."""
    options = {"target_compression": 5, "calib_data": text, **QUICK}
    moved = compress(dense(family), tmp_path / "moved", **options)
    monkeypatch.setattr(budget, "NEAR", 0)
    alone = compress(dense(family), tmp_path / "alone", **options)
    assert moved["budget"]["predicted_error"] <= alone["budget"]["predicted_error"]
    assert max(moved["bytes_per_token"], alone["bytes_per_token"]) <= moved["dense_bytes_per_token"] / 5


def test_ranks_near_another():
    ranks = candidate_ranks(512)
    assert budget.near(ranks, 32) == (32, 64, 96) and budget.near(ranks, 512) == (448, 480, 512)
    assert budget.near(ranks, 160) == (96, 128, 160, 192, 224)


def test_ranks_that_are_tried():
    assert candidate_ranks(64) == (16, 32, 48, 64)
    assert candidate_ranks(512) == tuple(range(32, 513, 32))
    assert candidate_ranks(400)[-1] == 400 and len(candidate_ranks(400)) <= 16
