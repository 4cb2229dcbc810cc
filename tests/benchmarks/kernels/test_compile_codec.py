"""The codec's layers of the check have the sizes that their names say."""

import pytest

from benchmarks.kernels import compile_codec
from benchmarks.kernels.check import LAYERS, RECOMMENDED
from benchmarks.kernels.compile_codec import CODEC_LAYERS, codec_calls
from benchmarks.kernels.gpus import CHIPS
from benchmarks.latency.cpu_arms import random_codec
from palu_vllm.kernels.codec.reference import CodecAttention


@pytest.mark.parametrize("name", CODEC_LAYERS)
def test_a_layer_takes_about_a_quarter_of_the_bytes(name):
    layer = CODEC_LAYERS[name]
    codec = random_codec(layer.num_kv_heads, layer.head_dim, layer.groups, layer.tiers)
    dense = 2 * layer.num_kv_heads * layer.head_dim * 2
    assert 3.6 < dense / codec.bytes_per_token < 4.4
    assert codec.num_groups == layer.groups and layer.num_heads % layer.num_kv_heads == 0


def test_all_are_checked_and_recommended():
    assert set(CODEC_LAYERS) <= set(LAYERS) and set(CODEC_LAYERS) <= RECOMMENDED


def test_without_kernels_there_is_nothing_to_compile(monkeypatch):
    monkeypatch.setattr(compile_codec, "codec_attention", lambda device: CodecAttention)
    assert codec_calls(CODEC_LAYERS["llama_3_8b_codec_4x"], CHIPS["sm_90"]) == []
