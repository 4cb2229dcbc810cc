"""Each defect of the paper's reference implementation, shown absent (docs: research on shadowpa0327/Palu)."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from offline_compress import CompressionError, compress
from offline_compress.calibration.fisher import fisher_information, next_token_loss
from offline_compress.options import CompressOptions
from palu_vllm.format.checkpoint import SINGLE, iterate_tensors
from tests.support.tiny_models import build_even, edit_config, write_text

QUICK = {"calib_samples": 6, "calib_seqlen": 48}
SEARCHING = QUICK | {"search": "fisher_uniform"}


def test_fisher_loss_is_shifted_once(dense):
    model = AutoModelForCausalLM.from_pretrained(dense("llama"))
    tokens = torch.randint(0, 256, (30,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(input_ids=tokens[None], labels=tokens[None])
    ours = next_token_loss(theirs.logits[0], tokens)
    torch.testing.assert_close(ours, theirs.loss)
    two_ahead = cross_entropy(theirs.logits[0, :-2], tokens[2:])
    assert abs(ours - two_ahead) > 1e-3


def down_of(model, out, **options) -> torch.Tensor:
    compress(model, out, search="uniform", **options)
    return load_file(out / SINGLE)["model.layers.0.self_attn.k_down.weight"]


def test_whitening_uses_the_data_that_the_flags_say(tmp_path, text, dense):
    base = {"calib_data": text, "whiten_samples": 6, "calib_seqlen": 48}
    other = str(write_text(tmp_path / "other.txt", seed=5))
    first = down_of(dense("llama"), tmp_path / "first", **base)
    changes = {"calib_data": other, "whiten_samples": 4, "calib_seqlen": 40, "seed": 7}
    for name, value in changes.items():
        assert not torch.equal(first, down_of(dense("llama"), tmp_path / name, **(base | {name: value}))), name


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"rank_ratio": 0.25}, "rank_k"),
        ({"group_size": 2}, "group_size_k"),
        ({"group_size_k": 2}, "group_size_k"),
        ({"group_size_v": 2}, "group_size_v"),
        ({"objective": "svd"}, "relative_error_k"),
        ({"search": "uniform"}, "rank_v"),
        ({"value_path": "factored"}, "value_path"),
        ({"value_path": "auto"}, "value_path"),
        ({"latent_bits": 4}, "bytes_per_token"),
        ({"latent_bits_k": 8}, "tiers_k"),
        ({"latent_bits_v": 8}, "tiers_v"),
        ({"tiers": ((0.5, 8), (0.5, 4))}, "tiers_k"),
        ({"hadamard": True}, "hadamard"),
        ({"latent_bits": 4, "latent_group_size": 16}, "latent_group_size"),
        ({"latent_bits": 4, "latent_symmetric": True}, "latent_symmetric"),
        ({"latent_bits": 4, "latent_clip_ratio": 0.9}, "clip_v"),
        ({"fisher_samples": 2}, "fisher_samples"),
        ({"whiten_samples": 2}, "whiten_samples"),
        ({"calib_seqlen": 32}, "calib_seqlen"),
        ({"seed": 1}, "calibration"),
        ({"dtype": "bfloat16"}, "bytes_per_token"),
        ({"calib_data": "another file"}, "calibration"),
    ],
)
def test_every_option_is_read(tmp_path, text, dense, change, affected, unchanged_report):
    if "calib_data" in change:
        change = {"calib_data": str(write_text(tmp_path / "another.txt", seed=9))}
    report = compress(dense("llama"), tmp_path / "out", **({"calib_data": text, **SEARCHING} | change))
    assert report[affected] != unchanged_report[affected]


@pytest.fixture(scope="module")
def unchanged_report(tmp_path_factory, text, dense):
    return compress(dense("llama"), tmp_path_factory.mktemp("base") / "out", calib_data=text, **SEARCHING)


def test_nothing_is_cached_between_models_of_the_same_name(tmp_path, text, dense, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(dense("llama"), tmp_path / "model")
    first = down_of(model, tmp_path / "a", calib_data=text, **QUICK)
    tensors = load_file(model / SINGLE)
    tensors["model.embed_tokens.weight"] = torch.randn(300, 64, generator=torch.Generator().manual_seed(3))
    save_file(tensors, model / SINGLE, metadata={"format": "pt"})
    assert not torch.equal(first, down_of(model, tmp_path / "b", calib_data=text, **QUICK))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "model"]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_the_kept_ratio_does_not_drift(tmp_path, text, dense, ratio):
    report = compress(dense("llama"), tmp_path / "out", rank_ratio=ratio, calib_data=text, **QUICK)
    assert abs(sum(report["rank_k"] + report["rank_v"]) - ratio * 4 * 64) <= 8
    assert report["bytes_per_token"] / report["dense_bytes_per_token"] == report["rank_ratio_realised"]


def test_the_default_ratio_is_a_ratio():
    assert CompressOptions(model="m", out="o").rank_ratio == 0.5
    for ratio in (-1, 0, 1.5, float("nan")):
        with pytest.raises(CompressionError, match="outside .0, 1."):
            CompressOptions(model="m", out="o", rank_ratio=ratio)


def test_gradients_are_float32():
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    embedding = torch.full((6, 4), 1e-9)  # gradients below the smallest float16
    found = fisher_information(
        lambda row: embedding[row] @ weight.T, [weight], torch.randint(0, 6, (2, 9)), lambda _: None
    )
    assert found[0].dtype == torch.float32
    assert 0 < found[0].max() < torch.finfo(torch.float16).smallest_normal / 1000


@pytest.mark.parametrize("head_dim", [8, 32])
def test_head_dim_is_that_of_the_config(tmp_path, text, head_dim):
    model = build_even(tmp_path / "model", head_dim=head_dim)  # hidden / heads would be 8 for both
    report = compress(model, tmp_path / "out", calib_data=text, **QUICK)
    assert report["full_rank_k"] == report["full_rank_v"] == 4 * head_dim


def test_llama3_rope_is_accepted_in_the_spelling_of_transformers_4(tmp_path, text, own_dense):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    edit_config(own_dense, rope_parameters=None, rope_scaling=scaling, rope_theta=500000.0)
    compress(own_dense, tmp_path / "out", calib_data=text, **QUICK)


def test_the_ratio_counts_layers_that_stay_uncompressed(tmp_path, text, dense):
    report = compress(dense("llama"), tmp_path / "out", rank_ratio=0.9, calib_data=text, **QUICK)
    assert 64 in report["rank_k"] + report["rank_v"]
    rows = sum(len(tensor) for name, tensor in iterate_tensors(tmp_path / "out") if name.endswith("_down.weight"))
    assert report["bytes_per_token"] == 4 * rows


def test_plain_svd_of_real_truncation_works(tmp_path, dense):
    report = compress(dense("llama"), tmp_path / "out", objective="svd", search="uniform")
    assert all(0.1 < error < 1 for error in report["relative_error_k"])
    assert report["error_measure"] == "weights"
