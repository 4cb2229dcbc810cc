"""What a configuration says of one layer."""

from dataclasses import replace

import pytest

from palu_vllm.format.config import AttentionGeometry
from palu_vllm.format.layers import layer_shape
from tests.palu_vllm.format.test_config import MODEL, read

GEOMETRY = AttentionGeometry.from_hf_config(MODEL)


def test_layer_shapes():
    compressed, whole = (layer_shape(read(), GEOMETRY, layer) for layer in range(2))
    assert (compressed.num_groups_k, compressed.num_groups_v) == (2, 2)
    assert (compressed.key_latents, compressed.value_latents) == (1, 1)
    assert (compressed.full_rank_k, compressed.full_rank_v, compressed.has_k_up) == (32, 32, True)
    assert (compressed.value_path, compressed.output_width) == ("fused", 8 * 12)
    assert (whole.value_path, whole.has_k_up, whole.output_width) == ("uncompressed", False, 8 * 16)
    assert layer_shape(read(value_path="factored"), GEOMETRY, 0).output_width == 8 * 16


@pytest.mark.parametrize("sizes", [(2, 4), (1, 4), (4, 1), (4, 2)])
def test_each_side_has_its_own_groups_and_full_rank(sizes):
    full_k, full_v = (16 * size for size in sizes)
    ranks = {"rank_k": [8, full_k], "rank_v": [full_v, 12]}
    palu = read(group_size_k=sizes[0], group_size_v=sizes[1], **ranks)
    first, second = (layer_shape(palu, GEOMETRY, layer) for layer in range(2))
    groups = 4 // sizes[0], 4 // sizes[1]
    assert (first.num_groups_k, first.num_groups_v) == (first.key_latents, first.value_latents) == groups
    assert (first.full_rank_k, first.full_rank_v, first.group_size) == (full_k, full_v, 4)
    assert (first.has_k_up, second.has_k_up) == (True, False)
    assert (first.value_path, second.value_path) == ("uncompressed", "fused")


def test_a_shared_layer_has_its_sources_sizes():
    palu = read(rank_k=[8, 8], rank_v=[12, 12], source_layers=[0, 0])
    first, second = (layer_shape(palu, GEOMETRY, layer) for layer in range(2))
    assert (first.shared, second.shared) == (False, True)
    assert replace(second, shared=False) == first
