"""Reordered heads: the same attention, and similar heads side by side."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_compress import compress
from offline_compress.factors.head_order import ReorderedSource, grouped_order, nested_order, permuted, similarity
from offline_compress.model.source import open_source
from palu_vllm.format.checkpoint import read_config
from tests.offline_compress.oracle import dense_attention, latent_attention, shape_of
from tests.offline_compress.test_pipeline import QUICK, low_rank_model


@settings(max_examples=50)
@given(st.sampled_from([(4, 2), (8, 2), (8, 4), (6, 3), (3, 1), (4, 4)]), st.integers(0, 10**6))
def test_an_order_is_a_permutation_group_by_group(sizes, seed):
    heads, group_size = sizes
    similar = torch.rand(heads, heads, generator=torch.Generator().manual_seed(seed)).double()
    order = grouped_order(similar + similar.T, group_size)
    assert sorted(order) == list(range(heads))
    groups = [tuple(order[i : i + group_size]) for i in range(0, heads, group_size)]
    assert groups == sorted(tuple(sorted(group)) for group in groups)


@settings(max_examples=50)
@given(st.sampled_from([(8, 4, 2), (8, 8, 2), (8, 4, 1), (6, 6, 3), (12, 6, 2)]), st.integers(0, 10**6))
def test_smaller_groups_lie_within_larger_ones(sizes, seed):
    heads, large, small = sizes
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = torch.rand(2, heads, heads, generator=generator).double()
    coarse, fine = coarse + coarse.T, fine + fine.T
    order = nested_order(coarse, large, fine, small)
    assert sorted(order) == list(range(heads))
    outer = grouped_order(coarse, large)
    for start in range(0, heads, large):
        assert sorted(order[start : start + large]) == sorted(outer[start : start + large])
    if large == heads:  # one group of all: the order is that of the smaller groups alone
        assert order == grouped_order(fine, small)


def test_twins_share_a_group():
    similar = torch.eye(6).double()
    for a, b in ((0, 4), (1, 3), (2, 5)):
        similar[a, b] = similar[b, a] = 0.9
    assert grouped_order(similar, 2) == [0, 4, 1, 3, 2, 5]


def test_similarity_sees_subspaces():
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(8, 20, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    other = torch.randn(8, 20, generator=generator)
    inputs = torch.randn(50, 20, generator=generator).double()
    for moment in (None, inputs.T @ inputs):
        found = similarity(torch.cat([head, 3 * turn @ head, other]), 3, moment)
        torch.testing.assert_close(found, found.T)
        assert found[0, 1].item() == pytest.approx(1) and found[0, 2] < 0.9
        assert found.min() >= 0 and found.max() <= 1 + 1e-9


def test_a_reordered_source_moves_heads_together(dense):
    source, order = open_source(str(dense("qwen2"))), [2, 0, 3, 1]
    moved = ReorderedSource.of(source, order)
    for name in source.tensors:
        before, after = source.tensor(name), moved.tensor(name)
        assert torch.equal(torch.cat(list(moved.chunks(name))), after)
        if "q_proj" in name or "k_proj" in name or "v_proj" in name:
            assert torch.equal(after, permuted(before, order))
        elif name.endswith("o_proj.weight"):
            assert torch.equal(after, permuted(before, order, dim=1))
        else:
            assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("family", "overrides", "groups"),
    [
        ("llama", {"attention_bias": True}, {"group_size": 2, "rank_ratio": 0.25}),
        ("qwen2", {}, {"group_size": 2, "rank_ratio": 0.25}),
        ("qwen2", {}, {"group_size_k": 4, "group_size_v": 2, "rank_ratio": 0.1875}),
    ],
)
def test_reordering_changes_nothing_where_nothing_is_lost(tmp_path, text, family, overrides, groups):
    model = low_rank_model(tmp_path / "model", family, 16, **overrides)
    options = {**groups, "search": "uniform", "calib_data": text, **QUICK}
    report = compress(model, tmp_path / "out", reorder_heads=True, **options)
    assert report["reorder_heads"] and report["rank_k"] == [16, 16]
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0)).double()
    for layer in range(2):
        expected = dense_attention(model, layer, shape_of(tmp_path / "out", layer), x)
        torch.testing.assert_close(latent_attention(tmp_path / "out", layer, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_size", [1, 4])
def test_nothing_is_reordered_where_it_would_not_matter(tmp_path, dense, group_size):
    options = {"objective": "svd", "search": "uniform", "group_size": group_size}
    report = compress(dense("llama"), tmp_path / "out", reorder_heads=True, **options)
    compress(dense("llama"), tmp_path / "same", **options)
    assert not report["reorder_heads"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same")]
    assert weights[0] == weights[1]
    assert read_config(tmp_path / "out")
