"""Tiles and splits follow from shapes alone, and fit every device that is served."""

from dataclasses import astuple, replace

import pytest

from benchmarks.kernels.layers import SERVED_LAYERS
from palu_vllm.kernels.gpu.tiling import (
    ROWS_OF_ONE_QUERY,
    ROWS_OF_SEVERAL_QUERIES,
    Device,
    ceil_div,
    decode_rows,
    decode_splits,
    decode_tiling,
    group_parts,
    padded,
    programs_of_group,
)
from tests.support.shapes import LAYERS

DEVICES = {
    "h200": Device(multiprocessors=132, shared_memory=227 * 1024),
    "a100": Device(multiprocessors=108, shared_memory=163 * 1024),
    "l4": Device(multiprocessors=58, shared_memory=99 * 1024),
}
H200 = DEVICES["h200"]
every_layer = pytest.mark.parametrize("layer", (LAYERS | SERVED_LAYERS).values(), ids=LAYERS | SERVED_LAYERS)


@every_layer
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("element_size", [2, 4])
def test_tiles_fit_and_cover(layer, device, element_size):
    shape = layer.shape
    tiling = decode_tiling(shape, element_size, device, has_key_norm=layer.has_key_norm)
    sizes = (tiling.tokens, tiling.rank, tiling.half, tiling.rows, tiling.values)
    assert all(size >= 16 and size & (size - 1) == 0 for size in sizes), astuple(tiling)
    assert tiling.shared_memory(shape.rank_k, element_size) <= device.shared_memory
    assert 2 * tiling.half >= shape.head_dim
    assert tiling.rows >= shape.queries_per_kv


@every_layer
def test_packing_changes_the_products_but_neither_the_number_of_programs_nor_what_they_cover(layer):
    packed = layer.packed([(1.0, 4)], [(1.0, 4)])
    plain, tiling = (decode_tiling(each.shape, 2, H200) for each in (layer, packed))
    rank_v = layer.shape.rank_v
    assert tiling.values <= 64
    assert tiling.shared_memory(layer.shape.rank_k, 2) <= H200.shared_memory
    assert ceil_div(rank_v, tiling.values_per_program) == ceil_div(rank_v, plain.values_per_program)


TWO_TIERS, THREE_TIERS = [(0.25, 8), (0.75, 4)], [(0.25, 8), (0.25, 4), (0.5, 2)]


@pytest.mark.parametrize(
    ("tiers", "group_size", "tile"),
    [
        ([(1.0, 4)], 0, (128, 256)),
        (TWO_TIERS, 0, (128, 128)),
        (THREE_TIERS, 0, (64, 64)),
        ([(1.0, 4)], 32, (64, 32)),
        (TWO_TIERS, 32, (64, 32)),
        (THREE_TIERS, 32, (32, 16)),
    ],
)
def test_the_more_unpacking_holds_the_smaller_are_its_tiles(tiers, group_size, tile):
    packed = SERVED_LAYERS["llama_3_8b_256_256"].packed(tiers, tiers, "bfloat16")
    layer = packed.in_scale_groups(group_size) if group_size else packed
    tiling = decode_tiling(layer.shape, 2, H200)
    assert (tiling.tokens, tiling.rank) == tile
    assert tiling.num_stages == 1 or tiling.rank == layer.shape.rank_k


def test_a_single_tile_of_ranks_is_cut_only_for_many_rows():
    few, many = (SERVED_LAYERS[name].packed([(1.0, 4)], [(1.0, 4)], "bfloat16").in_scale_groups(32).shape
                 for name in ("llama_3_8b_128_384", "qwen_2_7b_128_384"))  # fmt: skip
    assert few.rank_k == many.rank_k
    assert decode_tiling(few, 2, H200).rank == few.rank_k
    assert decode_tiling(many, 2, H200).rank < many.rank_k


@every_layer
@pytest.mark.parametrize("queries", [1, 2, 4, 8])
def test_parts_of_a_group_are_equal_and_as_few_as_registers_allow(layer, queries):
    shape, most = layer.shape, ROWS_OF_ONE_QUERY if queries == 1 else ROWS_OF_SEVERAL_QUERIES
    parts = group_parts(shape, queries, DEVICES["h200"])
    assert shape.group_size % parts == 0
    assert decode_rows(shape, queries, parts) <= most or parts == shape.group_size
    fewest = max(shape.key_latents, shape.value_latents)
    assert parts % fewest == 0
    fewer = [count for count in range(fewest, parts, fewest) if shape.group_size % count == 0]
    assert all(decode_rows(shape, queries, count) > most for count in fewer)
    assert decode_tiling(shape, 2, H200, queries).rows == decode_rows(shape, queries, parts)


def test_parts_of_a_group_count_as_programs():
    shape = SERVED_LAYERS["llama_3_8b_256_256"].shape
    one, four = (decode_tiling(shape, 2, H200, queries) for queries in (1, 4))
    assert (one.parts, four.parts, four.rows) == (1, 4, 16)
    assert programs_of_group(shape, four) == 4 * programs_of_group(shape, one)
    assert decode_splits(shape, four, 1, 32768, H200) == decode_splits(shape, one, 1, 32768, H200) // 4


@pytest.mark.parametrize("layer", SERVED_LAYERS.values(), ids=SERVED_LAYERS)
def test_served_layers_decode_in_large_tiles(layer):
    """Fewer than 128 tokens re-read ``k_up`` from L2 more than the latents cost in device memory."""
    assert decode_tiling(layer.shape, 2, H200).tokens == 128


def test_splits_fill_the_device_once():
    shape = SERVED_LAYERS["llama_3_8b_256_256"].shape
    tiling = decode_tiling(shape, 2, H200)
    splits = {requests: decode_splits(shape, tiling, requests, 32768, H200) for requests in (1, 4, 64, 1000)}
    assert splits == {1: 66, 4: 16, 64: 1, 1000: 1}


def test_a_short_context_is_not_split_below_one_tile():
    shape = SERVED_LAYERS["llama_3_8b_256_256"].shape
    tiling = decode_tiling(shape, 2, H200)
    assert decode_splits(shape, tiling, 1, 300, H200) == 3
    windowed = replace(shape, sliding_window=200)
    assert decode_splits(windowed, tiling, 1, 32768, H200) == 2


@pytest.mark.parametrize(("size", "expected"), [(1, 16), (16, 16), (17, 32), (96, 128), (384, 512)])
def test_padded_is_a_power_of_two(size, expected):
    assert padded(size) == expected


def test_ceil_div():
    assert [ceil_div(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
