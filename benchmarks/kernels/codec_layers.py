"""Layers with a codec, whose kernels are compiled ahead of time: formats in about a quarter of the bytes of 16 bits."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.kernels.compile_ahead import Call, distinct, launched, meta
from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.latent_format import CodedFormat, Tier
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention
from palu_vllm.kernels.gpu.tiling import Device
from palu_vllm.kernels.interface import PagedBatch

Tiers = tuple[tuple[int, int], ...]
CONTEXT = 8192  # tokens


@dataclass(frozen=True)
class CodecLayer:
    """Sizes of a layer; ``key`` and ``value`` are tiers of ``(numbers, bits)``."""

    kv_heads: int
    queries_per_kv: int
    head_dim: int
    groups: int
    key: Tiers
    value: Tiers
    sliding_window: int | None = None
    has_sinks: bool = False

    def codec(self) -> LayerCodec:
        """Without values."""
        heads = meta(self.kv_heads, self.head_dim, dtype=torch.float32)
        where = torch.zeros(self.head_dim, dtype=torch.int64, device="meta")
        frequencies = torch.ones(self.head_dim // 2, dtype=torch.float64)
        key, value = (side(tiers, self.groups, heads) for tiers in (self.key, self.value))
        return LayerCodec(key, value, heads, heads, where, frequencies, heads)

    def settings(self) -> CodecSettings:
        heads = self.kv_heads * self.queries_per_kv
        sinks = meta(heads, dtype=torch.float32) if self.has_sinks else None
        return CodecSettings(heads, self.head_dim**-0.5, self.sliding_window, sinks=sinks, max_seq_len=CONTEXT)


def side(tiers: Tiers, groups: int, sink: torch.Tensor) -> SideCodec:
    form = CodedFormat(tuple(Tier(size, bits) for size, bits in tiers))
    return SideCodec(form, meta(groups, sink.numel() // groups, form.rank, dtype=torch.float32), sink)


# what palu-calibrate gave a layer of SmolLM2, by default and per head, and the same shares of Llama 3's numbers
PER_HEAD = ((16, 5), (32, 4), (80, 3))
LLAMA_3_8B = CodecLayer(
    8, 4, 128, 2, ((128, 5), (128, 4), (224, 3), (32, 2)), ((96, 5), (208, 4), (176, 3), (32, 2))
)  # fmt: skip
CODEC_LAYERS = {
    "codec_llama_3_8b": LLAMA_3_8B,
    "codec_llama_3_8b_4_bits": replace(LLAMA_3_8B, key=((512, 4),), value=((512, 4),)),
    "codec_llama_3_8b_per_head": replace(LLAMA_3_8B, groups=8, key=PER_HEAD, value=PER_HEAD),
    "codec_smollm2": CodecLayer(
        3, 3, 64, 1, ((48, 5), (48, 4), (80, 3), (16, 2)), ((32, 5), (80, 4), (64, 3), (16, 2))
    ),
    "codec_window_and_sinks": CodecLayer(8, 8, 64, 4, ((128, 4),), ((16, 8), (112, 3)), 128, has_sinks=True),
}  # fmt: skip


def store_and_attend(layer: CodecLayer, query_len: int, device: Device, requests: int = 8) -> None:
    """One step on a cache with vLLM's strides, in tiles for ``device``."""
    attention, tokens = TritonCodecAttention(layer.codec(), layer.settings(), device), requests * query_len
    batch = PagedBatch(
        block_table=meta(requests, 512, dtype=torch.int32),
        seq_lens=meta(requests, dtype=torch.int32),
        query_start_loc=meta(requests + 1, dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=CONTEXT,
    )
    bytes_of_slot = attention.codec.slot.bytes
    cache = meta(100, 16, layer.groups, bytes_of_slot, dtype=torch.uint8).transpose(1, 2)
    heads = meta(tokens, layer.kv_heads, layer.head_dim)
    attention.store(heads, heads, meta(tokens, dtype=torch.int64), cache, meta(tokens, dtype=torch.int64))
    query = meta(tokens, layer.kv_heads * layer.queries_per_kv, layer.head_dim)
    attention.attend(query, cache, batch, torch.empty_like(query))


def codec_calls(layer: CodecLayer, device: Device) -> list[Call]:
    """Every kernel of a prefill, which decodes requests of few queries too, each specialisation once; not those of
    contexts that take several workspaces.
    """
    return distinct(launched(partial(store_and_attend, layer, 64, device)))
