"""The kernels over a codec's slots, from the calls that would launch them: what ``compile_ahead`` is for latents."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.kernels.compile_ahead import Call, launched, meta, specialised
from benchmarks.latency.codec_arm import FOUR_TIMES
from benchmarks.latency.cpu_arms import Tiers, random_codec
from palu_vllm.kernels.choose import codec_attention
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.gpu.tiling import Device
from palu_vllm.kernels.interface import PagedBatch

BLOCK_SIZE, BLOCKS = 16, 512


@dataclass(frozen=True)
class CodecLayer:
    """Attention of one layer over a codec's slots; ``tiers`` are of K and of V."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    groups: int
    tiers: tuple[Tiers, Tiers]


FOUR_BITS = ((512, 4),)
CODEC_LAYERS = {
    "llama_3_8b_codec_4x": CodecLayer(32, 8, 128, 2, FOUR_TIMES[512]),
    "llama_3_8b_codec_4_bits": CodecLayer(32, 8, 128, 2, (FOUR_BITS, FOUR_BITS)),
    "llama_3_8b_codec_per_head": CodecLayer(32, 8, 128, 8, FOUR_TIMES[128]),
}


def store_and_attend(layer: CodecLayer, query_len: int, device: Device, requests: int = 8) -> None:
    """One step on a cache with vLLM's strides, in tiles for ``device``. Only the frequencies have values, which a table
    of positions is made of.
    """
    real = random_codec(layer.num_kv_heads, layer.head_dim, layer.groups, layer.tiers)
    codec = replace(real.to("meta"), frequencies=real.frequencies)
    settings = CodecSettings(layer.num_heads, layer.head_dim**-0.5)
    attention = codec_attention("cuda")(codec, settings, device=device)
    tokens = requests * query_len
    cache = meta(100, layer.groups, BLOCK_SIZE, codec.slot.bytes, dtype=torch.uint8)
    new = (meta(tokens, layer.num_kv_heads, layer.head_dim) for _ in range(2))
    numbers = (meta(tokens, dtype=torch.int64) for _ in range(2))
    positions, slots = numbers
    attention.store(*new, positions, cache, slots)
    batch = PagedBatch(
        block_table=meta(requests, BLOCKS, dtype=torch.int32),
        seq_lens=meta(requests, dtype=torch.int32),
        query_start_loc=meta(requests + 1, dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=BLOCKS * BLOCK_SIZE,
    )
    query = meta(tokens, layer.num_heads, layer.head_dim)
    attention.attend(query, cache, batch, torch.empty_like(query))


def codec_calls(layer: CodecLayer, device: Device) -> list[Call]:
    """Every kernel of a prefill and of decoding, each specialisation once; none where no kernel serves codec slots."""
    if codec_attention("cuda") is CodecAttention:
        return []
    calls = [call for queries in (1, 64) for call in launched(partial(store_and_attend, layer, queries, device))]
    return list({repr((call[0].__name__, specialised(*call))): call for call in calls}.values())
