"""The kernel that stores tokens, interpreted, writes the specification's bytes."""

import pytest
import torch

from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention
from tests.support.codecs.batches import FORMATS, WHOLE, stored, tokens
from tests.support.codecs.layers import layer_codec


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_those_of_the_specification(name):
    codec = layer_codec(*FORMATS[name])
    given = codec, WHOLE, 24, 3
    assert torch.equal(stored(TritonCodecAttention, *given), stored(CodecAttention, *given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("max_seq_len", [None, 100])
def test_narrow_keys_and_a_table_of_positions(dtype, max_seq_len):
    codec = layer_codec(((16, 8), (15, 3)), ((8, 4), (19, 2)), groups=2)
    key, value = (part.to(dtype) for part in tokens(codec, 12, 1))
    caches = [torch.zeros(1, codec.num_groups, 16, codec.slot.bytes, dtype=torch.uint8) for _ in range(2)]
    for kind, cache in zip((TritonCodecAttention, CodecAttention), caches, strict=True):
        layer = CodecSettings(4, 0.2, max_seq_len=max_seq_len)
        kind(codec, layer).store(key, value, torch.arange(12) + 80, cache, torch.arange(12))
    assert torch.equal(*caches)
