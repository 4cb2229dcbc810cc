"""The kernel that stores tokens, interpreted, writes the specification's bytes."""

import pytest
import torch

from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention
from tests.support.codecs.batches import FORMATS, WHOLE, tokens
from tests.support.codecs.layers import layer_codec


def stored(kind, codec, settings, key, value, positions, slots):
    cache = torch.full((3, codec.num_groups, 16, codec.slot.bytes), 7, dtype=torch.uint8)
    kind(codec, settings).store(key, value, positions, cache, slots)
    return cache


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_those_of_the_specification(name):
    codec = layer_codec(*FORMATS[name])
    key, value = tokens(codec, 24, 1)
    key[7], value[9] = 0, 0
    key[11, 0, 3], value[13, 1, 5], key[17] = torch.inf, torch.nan, 1e30
    positions = torch.arange(24) + 40
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(5))[:22]
    slots[20] = -1
    given = codec, WHOLE, key, value, positions, slots
    assert torch.equal(stored(TritonCodecAttention, *given), stored(CodecAttention, *given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("max_seq_len", [None, 100])
def test_narrow_keys_and_a_table_of_positions(dtype, max_seq_len):
    codec = layer_codec(((16, 8), (15, 3)), ((8, 4), (19, 2)), groups=2)
    key, value = (part.to(dtype) for part in tokens(codec, 12, 1))
    given = codec, CodecSettings(4, 0.2, max_seq_len=max_seq_len), key, value, torch.arange(12) + 80, torch.arange(12)
    assert torch.equal(stored(TritonCodecAttention, *given), stored(CodecAttention, *given))
