"""Attention in the basis of codes is attention over what the codes decode to; 16 bits are the dense model."""

import pytest
import torch

from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention, encode_tokens
from palu_vllm.kernels.interface import PagedBatch
from tests.support.codecs.layers import decoded, layer_codec, plain_attention

FORMATS = {
    "16 bits": (((64, 16),), ((64, 16),)),
    "4 bits": (((64, 4),), ((64, 4),)),
    "tiers": (((16, 8), (32, 3), (16, 2)), ((16, 4), (48, 3))),
    "cut": (((16, 8), (32, 4)), ((48, 4),)),
}
LENGTHS, QUERIES, BLOCKS = (37, 5, 64), (1, 5, 3), 16


def cached(codec, lengths=LENGTHS, block_size=16):
    """A cache with poisoned slots, its block table, and the dense keys and values that went in."""
    generator = torch.Generator().manual_seed(0)
    cache = torch.full((BLOCKS, codec.num_groups, block_size, codec.slot.bytes), 255, dtype=torch.uint8)
    free = torch.randperm(BLOCKS, generator=generator)
    table = torch.zeros(len(lengths), 8, dtype=torch.int32)
    dense = []
    for request, length in enumerate(lengths):
        count = -(-length // block_size)
        table[request, :count], free = free[:count], free[count:]
        key = 3 * torch.randn(length, codec.num_kv_heads, codec.key.sink.shape[1], generator=generator)
        value = torch.randn(length, codec.num_kv_heads, codec.value.sink.shape[1], generator=generator)
        key[0] += codec.key.sink
        positions = torch.arange(length)
        slots = table[request].long()[positions // block_size] * block_size + positions % block_size
        CodecAttention(codec, CodecSettings(4, 1.0)).store(key, value, positions, cache, slots)
        dense.append((key, value))
    return cache, table, dense


def batch(table, lengths=LENGTHS, queries=QUERIES):
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    return PagedBatch(table, torch.tensor(lengths, dtype=torch.int32), starts, max(queries), max(lengths))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("settings", [
    CodecSettings(4, 0.2), CodecSettings(4, 0.2, sliding_window=7), CodecSettings(4, 0.2, soft_cap=3.0),
    CodecSettings(4, 0.2, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
], ids=["full", "window", "soft cap", "sinks"])  # fmt: skip
def test_is_attention_over_what_codes_decode_to(name, groups, settings):
    tiers_k, tiers_v = (tuple((size // groups, bits) for size, bits in side) for side in FORMATS[name])
    codec = layer_codec(tiers_k, tiers_v, groups=groups)
    cache, table, dense = cached(codec)
    query = torch.randn(sum(QUERIES), 4, 32, generator=torch.Generator().manual_seed(3))
    out = torch.full((sum(QUERIES) + 1, 4, 32), torch.nan)
    CodecAttention(codec, settings).attend(query, cache, batch(table), out)
    start = 0
    for (key, value), queries in zip(dense, QUERIES, strict=True):
        positions = torch.arange(len(key))
        keys, values = decoded(codec, encode_tokens(codec, key, value, positions), positions)
        if name == "16 bits":
            torch.testing.assert_close(keys, key, rtol=0, atol=0.02)
            torch.testing.assert_close(values, value, rtol=0, atol=0.01)
        expected = plain_attention(query[start : start + queries], keys, values, settings)
        torch.testing.assert_close(out[start : start + queries], expected, rtol=2e-4, atol=2e-4)
        start += queries
    assert out[start:].isnan().all(), "rows past the last query are left alone"


def test_the_first_token_takes_the_centre_of_sinks():
    codec = layer_codec(((64, 4),), ((64, 4),))
    cache, table, dense = cached(codec)
    key, value = dense[0]
    slots = encode_tokens(codec, key, value, torch.arange(len(key)))
    scales = slots[:, 0, :2].contiguous().view(torch.float16)
    assert torch.signbit(scales[0]).item() and not torch.signbit(scales[1:]).any()


def test_a_token_that_is_not_finite_reaches_only_those_that_see_it():
    codec = layer_codec(((64, 4),), ((64, 4),))
    key, value = torch.randn(8, 2, 32), torch.randn(8, 2, 32)
    key[5, 0, 3], value[6, 1, 0] = torch.inf, torch.nan
    cache = torch.zeros(1, 1, 16, codec.slot.bytes, dtype=torch.uint8)
    attention = CodecAttention(codec, CodecSettings(4, 0.2))
    attention.store(key, value, torch.arange(8), cache, torch.arange(8))
    out = torch.empty(8, 4, 32)
    table = torch.zeros(1, 1, dtype=torch.int32)
    attention.attend(torch.randn(8, 4, 32), cache, batch(table, (8,), (8,)), out)
    assert out[:5].isfinite().all() and out[5:].isnan().all()


def test_padding_is_not_stored():
    codec = layer_codec(((64, 4),), ((64, 4),))
    cache = torch.full((2, 1, 16, codec.slot.bytes), 7, dtype=torch.uint8)
    key, value = torch.randn(4, 2, 32), torch.randn(4, 2, 32)
    attention = CodecAttention(codec, CodecSettings(4, 0.2))
    attention.store(key, value, torch.arange(4), cache, torch.tensor([3, -1, 20]))
    written = (cache != 7).any(-1).nonzero().tolist()
    assert written == [[0, 0, 3], [1, 0, 4]]
