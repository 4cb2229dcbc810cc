"""The Triton kernels over codec slots on a real chip against the float32 specification on the CPU.

``make test-gpu`` runs them. They have been collected on machines without a GPU and never run on one.
"""

import os
from dataclasses import replace

import pytest
import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention
from palu_vllm.kernels.interface import PagedBatch
from tests.support.codecs.batches import FORMATS, WHOLE, batch, cached, random_queries, tokens
from tests.support.codecs.layers import layer_codec

COMPILED = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not COMPILED, reason="needs an NVIDIA GPU and TRITON_INTERPRET=0")]
MIXED = ((37, 5, 231, 1200, 1, 150), (1, 5, 170, 3, 1, 2))
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # tf32 scores of centres; scores are about 10
CODECS = {name: layer_codec(*tiers) for name, tiers in FORMATS.items()} | {
    "llama 3, joint": layer_codec(
        ((128, 5), (128, 4), (224, 3), (32, 2)), ((96, 5), (208, 4), (176, 3), (32, 2)), 8, 128, 128, 2
    ),
    "llama 3, per head": layer_codec(*[((16, 5), (32, 4), (80, 3))] * 2, 8, 128, 128, 8),
    "smollm2": layer_codec(
        ((48, 5), (48, 4), (80, 3), (16, 2)), ((32, 5), (80, 4), (64, 3), (16, 2)), 3, 64, 64
    ),
}  # fmt: skip


def moved(made: PagedBatch, device: str) -> PagedBatch:
    tensors = (made.block_table.to(device), made.seq_lens.to(device), made.query_start_loc.to(device))
    return PagedBatch(*tensors, made.max_query_len, made.max_seq_len)


def attended_on(device: str, kind: type, codec: LayerCodec, settings: CodecSettings, query, cache, made):
    """What ``kind`` gives there, float32 on the CPU."""
    if settings.sinks is not None:
        settings = replace(settings, sinks=settings.sinks.to(device))
    out = query.new_empty(len(query), settings.num_heads, codec.value.sink.shape[1], device=device)
    kind(codec.to(device), settings).attend(query.to(device), cache.to(device), moved(made, device), out)
    return out.float().cpu()


def check(codec: LayerCodec, settings: CodecSettings, dtype: torch.dtype) -> None:
    cache, table = cached(codec, sizes=MIXED)
    given = codec, settings, random_queries(codec, settings, MIXED, dtype), cache, batch(table, MIXED)
    found, expected = attended_on("cuda", TritonCodecAttention, *given), attended_on("cpu", CodecAttention, *given)
    torch.testing.assert_close(found, expected, rtol=0, atol=ALLOWED[dtype])


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_attention(name, dtype):
    check(CODECS[name], replace(WHOLE, num_heads=4 * CODECS[name].num_kv_heads), dtype)


@pytest.mark.parametrize("settings", [
    CodecSettings(4, 0.2, sliding_window=40), CodecSettings(4, 0.2, soft_cap=3.0),
    CodecSettings(4, 0.2, sinks=torch.tensor([0.5, -1.0, 2.0, 30.0])),
], ids=["window", "soft cap", "sinks"])  # fmt: skip
def test_settings(settings):
    check(CODECS["tiers"], settings, torch.bfloat16)


@pytest.mark.parametrize("name", CODECS)
def test_stored_bytes(name):
    """Float64 products of cuBLAS are summed in another order, so one code in some thousands may be a neighbour."""
    codec, caches = CODECS[name], []
    key, value = tokens(codec, 300, 1)
    for kind, device in ((TritonCodecAttention, "cuda"), (CodecAttention, "cpu")):
        cache = torch.zeros(20, codec.num_groups, 16, codec.slot.bytes, dtype=torch.uint8, device=device)
        slots = torch.arange(300, device=device)
        kind(codec.to(device), WHOLE).store(key.to(device), value.to(device), slots, cache, slots)
        caches.append(cache.cpu())
    assert (caches[0] != caches[1]).float().mean() < 1e-3


def test_a_captured_store_follows_other_positions():
    codec = CODECS["llama 3, per head"]
    settings, tokens = replace(WHOLE, num_heads=32, max_seq_len=1024), 4
    key, value = (torch.randn(tokens, codec.num_kv_heads, side.sink.shape[1]) for side in (codec.key, codec.value))
    positions, slots = torch.arange(tokens), torch.arange(tokens)
    later = torch.tensor([700, 33, 5, 900]), torch.tensor([40, 3, 17, -1])
    caches = [torch.zeros(4, codec.num_groups, 16, codec.slot.bytes, dtype=torch.uint8) for _ in range(2)]
    CodecAttention(codec, settings).store(key, value, later[0], caches[0], later[1])
    kernel, given = TritonCodecAttention(codec.to("cuda"), settings), [key.cuda(), value.cuda(), positions.cuda()]
    cache, slots = caches[1].cuda(), slots.cuda()
    kernel.store(*given, cache, slots)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.store(*given, cache, slots)
    given[2].copy_(later[0])
    slots.copy_(later[1])
    cache.zero_()
    graph.replay()
    assert (cache.cpu() != caches[0]).float().mean() < 1e-3


def test_a_captured_graph_follows_other_lengths():
    codec, sizes = CODECS["llama 3, per head"], ((700, 450), (1, 1))
    settings = replace(WHOLE, num_heads=32, max_seq_len=1024)
    cache, table = cached(codec, sizes=sizes)
    query, made = random_queries(codec, settings, sizes, torch.bfloat16), moved(batch(table, sizes), "cuda")
    kernel, there = TritonCodecAttention(codec.to("cuda"), settings), (query.cuda(), cache.cuda())
    out = torch.empty_like(there[0])
    kernel.attend(*there, made, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.attend(*there, made, out)
    made.seq_lens.copy_(torch.tensor([90, 450], dtype=torch.int32))
    graph.replay()
    expected = attended_on("cpu", CodecAttention, codec, settings, query, cache, moved(made, "cpu"))
    torch.testing.assert_close(out.float().cpu(), expected, rtol=0, atol=ALLOWED[torch.bfloat16])
