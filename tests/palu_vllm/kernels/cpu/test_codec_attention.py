"""The C++ library gives the specification's bytes, and its attention up to what int16 queries and weights cost."""

import pytest
import torch

from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.cpu.codec_attention import CpuCodecAttention
from palu_vllm.kernels.cpu.compiled import why_not
from palu_vllm.kernels.interface import PagedBatch
from tests.support.codecs.batches import BLOCKS, FORMATS, SIZES, WHOLE, attended, batch, cached, stored, tokens
from tests.support.codecs.layers import layer_codec

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no C++ library: {why_not()}")
QUERIES = SIZES[1]


def close(found, expected, atol=2e-3):
    """Within what half a step of int16 is worth: 2e-4 of scores, whose range here is about ten."""
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    assert (found - expected).abs().mean() < 2e-4


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_attention_is_that_of_the_specification(name, groups):
    tiers = FORMATS[name] if groups == 1 else (((16, 4), (15, 3)), ((8, 8), (19, 2)))
    codec = layer_codec(*tiers, groups=groups)
    cache, table = cached(codec)
    close(*(attended(kind, codec, WHOLE, cache, table) for kind in (CpuCodecAttention, CodecAttention)))


@pytest.mark.parametrize("settings", [
    CodecSettings(4, 0.2, sliding_window=7), CodecSettings(4, 0.2, sliding_window=600),
    CodecSettings(4, 0.2, soft_cap=3.0), CodecSettings(4, 0.2, sinks=torch.tensor([0.5, -1.0, 2.0, 30.0])),
    CodecSettings(14, 0.2, sliding_window=64, soft_cap=5.0),
], ids=["window", "long window", "soft cap", "sinks", "seven queries"])  # fmt: skip
@pytest.mark.parametrize("name", ["tiers", "16 bits"])
def test_settings_are_those_of_the_specification(settings, name):
    codec = layer_codec(*FORMATS[name])
    cache, table = cached(codec)
    close(*(attended(kind, codec, settings, cache, table) for kind in (CpuCodecAttention, CodecAttention)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_queries_and_outputs(dtype):
    codec = layer_codec(*FORMATS["tiers"])
    cache, table = cached(codec)
    found, expected = (
        attended(kind, codec, WHOLE, cache, table, dtype) for kind in (CpuCodecAttention, CodecAttention)
    )
    close(found, expected, atol=0.02)


def test_strides_change_nothing():
    codec = layer_codec(*FORMATS["tiers"])
    cache, table = cached(codec)
    expected = attended(CpuCodecAttention, codec, WHOLE, cache, table)
    wide = torch.full((BLOCKS, 16, codec.num_groups, codec.slot.bytes + 12), 255, dtype=torch.uint8)
    strided = wide.transpose(1, 2)[..., : codec.slot.bytes]
    strided.copy_(cache)
    assert torch.equal(attended(CpuCodecAttention, codec, WHOLE, strided, table), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_stored_bytes_are_those_of_the_specification(name):
    codec = layer_codec(*FORMATS[name])
    given = codec, WHOLE, 300, 20
    assert torch.equal(stored(CpuCodecAttention, *given), stored(CodecAttention, *given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_keys_are_stored_alike(dtype):
    codec = layer_codec(*FORMATS["tiers"])
    key, value = (part.to(dtype) for part in tokens(codec, 40, 1))
    caches = [torch.zeros(3, 1, 16, codec.slot.bytes, dtype=torch.uint8) for _ in range(2)]
    for kind, cache in zip((CpuCodecAttention, CodecAttention), caches, strict=True):
        kind(codec, WHOLE).store(key, value, torch.arange(40), cache, torch.arange(40))
    assert torch.equal(*caches)


@pytest.mark.parametrize("count", [80, 160])
@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
def test_a_token_that_is_not_finite_reaches_only_those_that_see_it(side, count):
    codec = layer_codec(*FORMATS["4 bits"])
    pair = tokens(codec, count, 2)
    pair[side][50, 0, 3] = torch.inf
    cache = torch.zeros(10, 1, 16, codec.slot.bytes, dtype=torch.uint8)
    attention = CpuCodecAttention(codec, CodecSettings(4, 0.01))
    attention.store(*pair, torch.arange(count), cache, torch.arange(count))
    out = torch.empty(count, 4, 32)
    numbers = [torch.tensor(row, dtype=torch.int32) for row in ([list(range(10))], [count], [0, count])]
    attention.attend(torch.randn(count, 4, 32), cache, PagedBatch(*numbers, count, count), out)
    assert out[:50].isfinite().all() and out[50:].isnan().all()


def test_a_query_that_is_not_finite_stays_alone():
    codec = layer_codec(*FORMATS["4 bits"])
    cache, table = cached(codec)
    query = torch.randn(sum(QUERIES), 4, 32)
    query[8, 1, 5] = query[100, 2, 0] = torch.nan
    out = torch.empty(sum(QUERIES), 4, 32)
    CpuCodecAttention(codec, WHOLE).attend(query, cache, batch(table), out)
    broken = out.isnan().any(-1)
    assert broken[8, 1] and broken[100, 2] and broken.sum() == 2


def test_two_threads_are_one_thread_bit_for_bit():
    codec = layer_codec(*FORMATS["tiers"])
    cache, table = cached(codec)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(attended(CpuCodecAttention, codec, WHOLE, cache, table))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
