"""The layers with a codec that are compiled: sizes as their names say, all of them checked."""

import pytest

from benchmarks.kernels.check import LAYERS, RECOMMENDED
from benchmarks.kernels.codec_layers import CODEC_LAYERS


@pytest.mark.parametrize("name", CODEC_LAYERS)
def test_a_layer_takes_about_a_quarter_of_the_bytes(name):
    layer = CODEC_LAYERS[name]
    codec, dense = layer.codec(), 2 * layer.kv_heads * layer.head_dim * 2
    assert 3.6 < dense / codec.bytes_per_token < 4.5
    assert codec.num_groups == layer.groups and codec.num_kv_heads == layer.kv_heads


def test_all_are_checked_and_recommended():
    assert set(CODEC_LAYERS) <= set(LAYERS) and set(CODEC_LAYERS) <= RECOMMENDED
