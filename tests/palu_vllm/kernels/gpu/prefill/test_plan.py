"""Passes cover everything once within the workspace, and tiles fit every device that is served."""

from collections import Counter
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernels.layers import SERVED_LAYERS
from palu_vllm.kernels.gpu.prefill.plan import (
    WORKSPACE_BYTES,
    Lengths,
    context_tiles,
    plan_prefill,
    prefill_tiling,
    scratch_shapes,
    value_columns,
    workspace_width,
)
from palu_vllm.kernels.gpu.tiling import ceil_div
from tests.palu_vllm.kernels.gpu.test_tiling import DEVICES, H200
from tests.support.shapes import LAYERS

ALL_LAYERS = LAYERS | SERVED_LAYERS
LLAMA_3 = SERVED_LAYERS["llama_3_8b_256_256"].shape
requests = st.lists(
    st.integers(1, 3000).flatmap(lambda seq_len: st.tuples(st.integers(0, min(seq_len, 500)), st.just(seq_len))),
    min_size=1,
    max_size=6,
)


def plan(shape, lengths, workspace_bytes=WORKSPACE_BYTES):
    return plan_prefill(shape, lengths, prefill_tiling(shape, 2, H200), 2, H200, workspace_bytes)


def one_request(queries: int, seq_len: int) -> Lengths:
    return Lengths(requests=1, queries=queries, max_query_len=queries, max_seq_len=seq_len)


@pytest.mark.parametrize("layer", ALL_LAYERS.values(), ids=ALL_LAYERS)
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("element_size", [2, 4])
def test_tiles_fit_and_cover(layer, device, element_size):
    shape = layer.shape
    tiling = prefill_tiling(shape, element_size, device)
    sizes = (tiling.context, tiling.tokens, tiling.rank, tiling.half, tiling.rows, tiling.values)
    assert all(size >= 16 and size & (size - 1) == 0 for size in sizes), astuple(tiling)
    assert tiling.context % tiling.tokens == 0
    assert tiling.attending_memory(element_size) <= device.shared_memory
    assert tiling.rebuilding_memory(element_size) <= device.shared_memory
    assert 2 * tiling.half >= shape.head_dim
    assert tiling.rows >= shape.queries_per_kv


@pytest.mark.parametrize("rank_v", [9, 23, 64, 65, 111, 128, 130, 256, 257, 384, 512, 1000])
def test_value_columns_cover_the_rank_and_pad_it_little(rank_v):
    values, products = value_columns(rank_v)
    programs = ceil_div(rank_v, values * products)
    assert programs == ceil_div(rank_v, 256)
    assert rank_v <= programs * values * products < rank_v + max(16, 64 * programs)


@settings(derandomize=True)
@given(
    shape=st.sampled_from([layer.shape for layer in ALL_LAYERS.values()]),
    requests=st.integers(1, 40),
    queries=st.integers(1, 9000),
    max_seq_len=st.integers(1, 200_000),
    workspace_bytes=st.integers(1, 2**28),
)
def test_every_key_is_rebuilt_once_within_the_workspace(shape, requests, queries, max_seq_len, workspace_bytes):
    lengths = Lengths(requests, queries, queries, max_seq_len)
    tiling, found = prefill_tiling(shape, 2, H200), plan(shape, lengths, workspace_bytes)
    rebuilt, one_tile = Counter(), tiling.context * workspace_width(shape) * 2
    for part in found.passes():
        rebuilt.update((part.first_group + group, part.first_tile) for group in range(part.groups))
        assert part.groups * part.tiles * one_tile <= max(workspace_bytes, one_tile)
        assert part.first_tile + part.tiles == min(part.first_tile + found.tiles, found.num_tiles)
    starts = range(0, context_tiles(lengths, shape.sliding_window, tiling.context), found.tiles)
    assert rebuilt == Counter((group, start) for group in range(shape.num_groups) for start in starts)
    workspace, tile_starts, *carried = scratch_shapes(shape, lengths, tiling, found, 2)
    assert 4 * workspace[0] <= max(workspace_bytes, one_tile)
    assert tile_starts == (requests + 1,)
    assert len(carried) == (3 if found.carries else 0)


@settings(derandomize=True)
@given(requests=requests, window=st.none() | st.integers(1, 600), tile=st.sampled_from([32, 128]), tight=st.booleans())
def test_no_batch_has_more_tiles_than_planned(requests, window, tile, tight):
    query_lens, seq_lens = zip(*requests, strict=True)
    total = sum(seq_lens) if tight else None
    planned = context_tiles(
        Lengths(len(requests), sum(query_lens), max(query_lens), max(seq_lens), total), window, tile
    )
    seen = [
        0 if query_len == 0 else seq_len if window is None else min(seq_len, query_len + window - 1)
        for query_len, seq_len in requests
    ]
    assert planned >= sum(ceil_div(tokens, tile) for tokens in seen)
    if tight:
        assert planned <= sum(ceil_div(seq_len, tile) for seq_len in seq_lens) + len(requests)


def test_a_short_context_takes_one_pass():
    found = plan(LLAMA_3, one_request(2048, 16384))
    assert len(list(found.passes())) == 1
    assert not found.carries


def test_groups_are_worked_on_apart_before_their_context_is():
    medium, long = plan(LLAMA_3, one_request(2048, 32768)), plan(LLAMA_3, one_request(2048, 131072))
    assert (medium.groups, medium.carries, len(list(medium.passes()))) == (1, False, 2)
    assert (long.groups, long.carries, len(list(long.passes()))) == (1, True, 8)


def test_groups_stay_together_where_one_would_not_fill_the_device():
    found = plan(LLAMA_3, one_request(64, 131072))
    assert (found.groups, found.carries) == (2, True)


def test_a_window_bounds_the_passes():
    windowed = replace(LLAMA_3, sliding_window=4096)
    assert len(list(plan(windowed, one_request(2048, 131072)).passes())) == 1


def test_what_passes_carry_stays_small():
    """At most about as much as the workspace: for one group, or for queries too few to fill the device."""
    shape = SERVED_LAYERS["llama_2_7b_128_384"].shape
    for queries in (64, 512, 2048, 8192):
        lengths = one_request(queries, 131072)
        found = plan(shape, lengths)
        carried = scratch_shapes(shape, lengths, prefill_tiling(shape, 2, H200), found, 2)[2]
        assert found.carries
        assert 4 * carried[0] * carried[1] * carried[2] <= WORKSPACE_BYTES
