"""The named table of shapes has every kind of layer that the kernels promise to serve."""

from tests.support.shapes import LARGE_LAYERS, LAYERS, PACKED_LAYERS

SHAPES = [layer.shape for layer in (LAYERS | LARGE_LAYERS).values()]


def test_every_ratio_group_size_and_head_size():
    assert {shape.queries_per_kv for shape in SHAPES} >= {1, 2, 3, 4, 5, 6, 7, 8, 16}
    assert {shape.group_size for shape in SHAPES} == set(range(1, 9))
    assert {shape.head_dim for shape in SHAPES} == {64, 80, 96, 128, 256}
    assert any(shape.num_groups > 1 for shape in SHAPES) and any(shape.num_groups == 1 for shape in SHAPES)


def test_ranks_of_every_kind():
    ranks = {shape.rank_k for shape in SHAPES} | {shape.rank_v for shape in SHAPES}
    assert max(shape.rank_k for shape in SHAPES) == max(shape.rank_v for shape in SHAPES) == 1024
    assert any(rank % 16 for rank in ranks) and {16, 48, 1008, 1024} <= ranks
    assert any(shape.rank_k < shape.rank_v for shape in SHAPES) and any(shape.rank_k > shape.rank_v for shape in SHAPES)
    assert all(shape.rank_k <= shape.group_size_k * shape.head_dim for shape in SHAPES)
    assert all(shape.rank_v <= shape.group_size_v * shape.head_dim for shape in SHAPES)
    counts = {(shape.key_latents, shape.value_latents) for shape in SHAPES}
    assert {(1, 1), (2, 1), (1, 2)} <= counts


def test_biases_windows_whole_keys_and_packed_latents():
    layers = (LAYERS | PACKED_LAYERS).values()
    assert any(layer.has_bias and layer.shape.sliding_window for layer in layers)
    assert any(not layer.compressed and layer.has_bias for layer in layers)
    bits = {tier.bits for layer in layers if layer.shape.slot for tier in layer.shape.slot.value.tiers}
    assert bits == {16, 8, 4, 3, 2}
