"""LoRC's rule: what the formula says, computed in another way; what the command makes of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline_compress import compress
from offline_compress.model.access import KEY, VALUE, projection
from offline_compress.model.source import open_source
from offline_compress.ranks.allocation import allocate_ranks, by_matrix
from offline_compress.ranks.rules.lorc import LEAST_SHARE, RESOLVED, condition_number, progressive_weights
from palu_vllm.format.kv import KV
from tests.support.tiny_models import build_even

CONDITIONS = st.lists(st.builds(KV, st.floats(1, 1e6), st.floats(1, 1e6)), min_size=1, max_size=12)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (24, 24)])
def test_condition_numbers_are_those_of_a_singular_value_decomposition(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(weight.double())
    assert condition_number(weight) == pytest.approx((values[0] / values[-1]).item(), rel=1e-6)
    assert condition_number(3 * weight) == pytest.approx(condition_number(weight), rel=1e-6)


def test_conditions_that_are_beyond_float64_are_finite():
    assert condition_number(torch.ones(4, 8)) == pytest.approx(1 / RESOLVED)
    assert condition_number(torch.zeros(4, 8)) == 1


@given(CONDITIONS)
def test_weights_are_those_of_the_formula(conditions):
    """With products, as the paper has them."""
    logs = [math.log(math.prod(k * v for k, v in conditions[layer:])) for layer in range(len(conditions))]
    weights = progressive_weights(conditions)
    assert min(weights) >= LEAST_SHARE - 1e-9 and max(weights) == 1
    if max(logs) - min(logs) > 1e-6:
        shares = [(own - min(logs)) / (max(logs) - min(logs)) for own in logs]
        assert weights == pytest.approx([0.5 + 0.5 * share for share in shares], abs=1e-6)


@given(CONDITIONS)
def test_deeper_layers_get_no_more(conditions):
    weights = progressive_weights(conditions)
    assert weights == sorted(weights, reverse=True)
    ranks = allocate_ranks(by_matrix, [[weight] for weight in weights for _ in "kv"], [128] * 2 * len(conditions), 0.5)
    assert sum(ranks) == 64 * len(ranks)
    assert all(a >= b - 16 for a, b in zip(ranks[0::2], ranks[2::2], strict=False)), "to a step"


@pytest.mark.parametrize("options", [{}, {"group_size": 2}, {"group_size_k": 2, "group_size_v": 4}, {"latent_bits": 4}])
def test_the_command_needs_no_data_and_reports_what_it_found(dense, tmp_path, options):
    options = {"objective": "svd", "search": "lorc", "rank_ratio": 0.5} | options
    dry = compress(dense("llama"), tmp_path / "out", dry_run=True, **options)
    assert not dry["ranks_are_final"] and dry["temporary_disk_bytes"] == 0
    report = compress(dense("llama"), tmp_path / "out", **options)
    assert report["calibration"] == "none" and report["rank_ratio_realised"] == 0.5
    source, found = open_source(str(dense("llama"))), report["rank_search"]
    for layer in range(2):
        for name, side in ((KEY, "k"), (VALUE, "v")):
            values = torch.linalg.svdvals(source.tensor(projection(layer, name)).double())
            assert found[f"condition_number_{side}"][layer] == pytest.approx((values[0] / values[-1]).item())
    assert found["share_of_d_max"] == [1.0, LEAST_SHARE]


def test_the_first_layer_keeps_more_than_the_last(tmp_path):
    model = build_even(tmp_path / "model", num_hidden_layers=4)
    report = compress(model, tmp_path / "out", objective="svd", search="lorc", rank_ratio=0.5)
    assert report["rank_k"][0] > report["rank_k"][-1] and report["rank_v"][0] > report["rank_v"][-1]
    assert sum(report["rank_k"] + report["rank_v"]) == 8 * 32
