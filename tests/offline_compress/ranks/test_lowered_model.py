"""The greedy search on a real model: losses are transformers', the first step is that of trying all."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress import compress
from offline_compress.calibration.activations import activation_file
from offline_compress.model.access import KEY, VALUE, LayerRunner, hf_config, projection
from offline_compress.model.source import open_source
from offline_compress.ranks.greedy import lower_rank
from offline_compress.ranks.lowered_model import LoweredModel, NestedProjection
from palu_vllm.format.checkpoint import iterate_tensors
from palu_vllm.format.kv import paired

SIDES = (KEY, VALUE)
MATRICES = [(layer, name) for layer in range(2) for name in SIDES]
QUICK = {"calib_samples": 4, "calib_seqlen": 40, "rank_ratio": 0.5, "search": "matryoshka"}
FULL = 64  # of all four heads


def truncated(weight: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).float()


@torch.no_grad()
def divergence(model: torch.nn.Module, tokens: torch.Tensor, ranks: dict[int, int]) -> float:
    """KL of transformers' model with projections of ``MATRICES`` truncated, in nats per token."""
    dense = model(tokens).logits.log_softmax(-1)
    linears = {i: getattr(model.model.layers[MATRICES[i][0]].self_attn, MATRICES[i][1]) for i in ranks}
    before = {i: linear.weight.data for i, linear in linears.items()}
    for i, linear in linears.items():
        linear.weight.data = truncated(before[i], ranks[i])
    found = model(tokens).logits.log_softmax(-1)
    for i, linear in linears.items():
        linear.weight.data = before[i]
    return (dense.exp() * (dense - found)).sum(-1).mean().item()


def nested(weight: torch.Tensor) -> NestedProjection:
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return NestedProjection((s[:, None] * v).float()[None], u.T.float()[None], (0, 1, 2, 3))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_losses_are_those_of_the_whole_model(tmp_path, dense, family):
    model = AutoModelForCausalLM.from_pretrained(dense(family), dtype=torch.float32)
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    source = open_source(str(dense(family)))
    runner = LayerRunner(source, hf_config(source.config), torch.device("cpu"))
    projections = paired([nested(source.tensor(projection(*each))) for each in MATRICES])
    lowered: dict[int, int] = {}
    with activation_file(tmp_path, (24, 64)) as file:
        found = LoweredModel(runner, projections, tokens, file)
        for matrix, rank in [(2, 48), (1, 32), (2, 16), (3, 32), (0, 16)]:
            for other in range(4):
                expected = divergence(model, tokens, lowered | {other: 16})
                assert found.loss(other, 16) == pytest.approx(expected, rel=1e-3, abs=1e-6)
            found.lower(matrix, rank)
            lowered[matrix] = rank


def test_the_first_step_is_that_of_trying_all(tmp_path, dense, text):
    """Data decides which samples; the weights of ``svd`` are cut as above."""
    report = compress(dense("llama"), tmp_path / "out", calib_data=text, objective="svd", **QUICK)
    matrix, rank, loss = report["rank_search"]["steps"][0]
    assert report["rank_ratio_realised"] == 0.5
    model = AutoModelForCausalLM.from_pretrained(dense("llama"), dtype=torch.float32)
    tokens = calibration_tokens(dense("llama"), text)
    losses = [divergence(model, tokens, {each: lower_rank(FULL, FULL)}) for each in range(4)]
    assert (matrix, rank) == (losses.index(min(losses)), 48)
    assert loss == pytest.approx(min(losses), rel=1e-3)


def calibration_tokens(model, text) -> torch.Tensor:
    from offline_compress.calibration.samples import load_samples
    from offline_compress.ranks.rules.matryoshka import SAMPLES

    samples = load_samples(text, model, 300, SAMPLES, QUICK["calib_seqlen"], 42)
    return samples.tokens[:SAMPLES]


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "whiten"},
        {"objective": "whiten", "group_size": 2, "reorder_heads": True, "rank_ratio": 0.75},
        {"objective": "weighted", "group_size_k": 2, "group_size_v": 4, "latent_bits": 4},
    ],
)
def test_the_budget_is_met_and_the_same_inputs_give_the_same_weights(tmp_path, dense, text, options):
    options = QUICK | options
    reports = [compress(dense("llama"), tmp_path / name, calib_data=text, **options) for name in "ab"]
    assert reports[0]["rank_search"] == reports[1]["rank_search"]
    assert reports[0]["rank_ratio_realised"] == options["rank_ratio"]
    weights = [dict(iterate_tensors(tmp_path / name)) for name in "ab"]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    lowest = {matrix: rank for matrix, rank, _ in reports[0]["rank_search"]["steps"]}
    ranks = [rank for pair in zip(reports[0]["rank_k"], reports[0]["rank_v"], strict=True) for rank in pair]
    assert lowest and all(ranks[matrix] >= rank for matrix, rank in lowest.items()), "the last step is taken in part"


def test_the_dry_run_counts_factors_and_samples(tmp_path, dense, text):
    uniform, greedy = (
        compress(dense("llama"), tmp_path / "out", dry_run=True, calib_data=text, objective="svd",
                 **QUICK | {"search": search}) for search in ("uniform", "matryoshka")
    )  # fmt: skip
    factors = 4 * 4 * FULL * (64 + FULL)  # bytes, projections, numbers
    assert greedy["predicted_layer_memory_bytes"] - uniform["predicted_layer_memory_bytes"] >= factors
    assert greedy["temporary_disk_bytes"] == 4 * 2 * 40 * 64 * (2 + 2), "samples before two layers, behind, and dense"
    assert not greedy["ranks_are_final"]
