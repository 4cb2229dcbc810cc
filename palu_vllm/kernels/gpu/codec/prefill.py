"""Attention of many queries per request over codes: over whole keys and values that are restored once per step.

In the basis of codes a group's queries are as wide as the group, and every few rows would unpack all codes anew. Whole
keys cost one product per token and head, which does not grow with the queries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.codec.constants import per_head
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.gpu.arguments import log2_scale, taken_by
from palu_vllm.kernels.gpu.codec.layout import in_columns, low_numbers, parts, width
from palu_vllm.kernels.gpu.codec.plan import MOST_QUERIES
from palu_vllm.kernels.gpu.codec.restore import restore_keys_kernel, restore_values_kernel
from palu_vllm.kernels.gpu.prefill.context_tiles import number_tiles
from palu_vllm.kernels.gpu.prefill.launches import attend_in_passes, lengths_of
from palu_vllm.kernels.gpu.prefill.plan import (
    WORKSPACE_BYTES,
    Lengths,
    Pass,
    PrefillPlan,
    PrefillTiling,
    plan_prefill,
    prefill_tiling,
    scratch_shapes,
)
from palu_vllm.kernels.gpu.tiling import SMALLEST_TILE, Device, ceil_div, padded
from palu_vllm.kernels.interface import PagedBatch

RESTORED_NUMBERS = 32768  # levels of a tier in the registers of 8 warps
MOST_RESTORED = 64  # numbers of a head, beside whose sums their centres are in registers
DECODER_NUMBERS = 8192  # of the decoder of a part, on their way to shared memory


class CodecPrefill:
    """Of one layer, for the requests of more than ``MOST_QUERIES`` queries. ``constants`` are those of the layer.

    Whole keys and values take ``workspace_bytes`` at a time.
    """

    def __init__(self, codec: LayerCodec, settings: CodecSettings, constants: dict[str, Any], values: torch.Tensor):
        self.shape = whole_shape(codec, settings)
        tiers = codec.slot.key.tiers + codec.slot.value.tiers
        self.part = max(width(low_numbers(tier)) for tier in tiers)  # columns of the widest one
        self.widest = max(parts(tier) * width(low_numbers(tier)) for tier in tiers)  # of a tier
        self.constants = constants | {
            "centres_v_ptr": values[:, -2:].contiguous(), "sink_k_ptr": codec.key.sink.contiguous(),
            "centre_cos_ptr": codec.centre_cos.contiguous(), "centre_sin_ptr": codec.centre_sin.contiguous(),
            "frequency_of_ptr": codec.frequency_of, "FREQUENCIES": len(codec.frequencies),
            "HEADS_OF_GROUP": codec.num_kv_heads // codec.num_groups, "GROUP_SIZE": 1, "GROUP_SIZE_V": 1,
            "HEAD_DIM": self.shape.head_dim, "ROTARY_DIM": self.shape.head_dim, "RANK_V": self.shape.rank_v,
            "TILE_KEY": self.restored(self.shape.head_dim), "TILE_VALUE": self.restored(self.shape.rank_v),
            "NUM_SINKS": 0, "SHIFT_SINKS": False, "cos_sin_ptr": None, "LEAST_QUERIES": MOST_QUERIES + 1,
            "scale_log2": log2_scale(self.shape) * (2 / settings.soft_cap if settings.soft_cap else 1.0),
        }  # fmt: skip
        self.decoders = columns_of_keys(codec), values[:, :-2]
        self.decoders_in: dict[torch.dtype, dict[str, torch.Tensor]] = {}  # made once per type
        self.workspace_bytes = WORKSPACE_BYTES

    @contextmanager
    def in_workspaces_of(self, size: int) -> Iterator[None]:
        """With so many bytes at a time."""
        usual, self.workspace_bytes = self.workspace_bytes, size
        try:
            yield
        finally:
            self.workspace_bytes = usual

    def attend(
        self, query: torch.Tensor, batch: PagedBatch, out: torch.Tensor, step: dict[str, Any], dtype: torch.dtype,
        device: Device,
    ) -> None:  # fmt: skip
        """Fills the rows of these requests. ``step`` are the step's arguments by name; products are of ``dtype``."""
        shape, lengths = self.shape, lengths_of(query, batch)
        tiling, plan = self.plan(lengths, dtype, device)
        scratch = self.scratch(lengths, tiling, plan, dtype, query.device)
        number_tiles(
            batch, scratch[1].view(torch.int32), shape.sliding_window, tiling.context, least_queries=MOST_QUERIES + 1
        )
        strides = {"query_ptr": query, "stride_query_token": query.stride(0), "stride_query_head": query.stride(1)}
        available = step | self.constants | self.decoders_of(dtype) | strides
        attend_in_passes(available, lengths, out, shape, tiling, plan, scratch, dtype, restore)

    def restored(self, numbers: int) -> int:
        """Of these numbers of a head what one program restores, fewer where the decoder of a part is large."""
        return min(padded(numbers), MOST_RESTORED, max(SMALLEST_TILE, DECODER_NUMBERS // self.part))

    def decoders_of(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Operands of products of this type, as wide as levels."""
        if dtype not in self.decoders_in:
            key, value = (decoder.to(dtype).contiguous() for decoder in self.decoders)
            self.decoders_in[dtype] = {"decoder_k_ptr": key, "decoder_v_ptr": value}
        return self.decoders_in[dtype]

    def tiling(self, dtype: torch.dtype, device: Device) -> PrefillTiling:
        """That of whole keys, with fewer tokens restored by one program, which has the levels of a whole tier."""
        usual = prefill_tiling(self.shape, dtype.itemsize, device)
        context = min(usual.context, max(SMALLEST_TILE, RESTORED_NUMBERS // self.widest))
        return replace(usual, context=context, tokens=min(usual.tokens, context))

    def plan(self, lengths: Lengths, dtype: torch.dtype, device: Device) -> tuple[PrefillTiling, PrefillPlan]:
        """Of such a batch."""
        tiling = self.tiling(dtype, device)
        return tiling, plan_prefill(self.shape, lengths, tiling, dtype.itemsize, device, self.workspace_bytes)

    def scratch(
        self, lengths: Lengths, tiling: PrefillTiling, plan: PrefillPlan, dtype: torch.dtype, place: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """What such a batch takes, uninitialised."""
        shapes = scratch_shapes(self.shape, lengths, tiling, plan, dtype.itemsize)
        return tuple(torch.empty(shape, dtype=torch.float32, device=place) for shape in shapes)


def whole_shape(codec: LayerCodec, settings: CodecSettings) -> LayerShape:
    """Of a layer whose cache had whole keys and values, every KV head a group of its own."""
    key_dim, value_dim = codec.key.sink.shape[1], codec.value.sink.shape[1]
    return LayerShape(
        settings.num_heads, codec.num_kv_heads, key_dim, 1, 1, key_dim, value_dim,
        sliding_window=settings.sliding_window, softmax_scale=settings.scale,
    )  # fmt: skip


def columns_of_keys(codec: LayerCodec) -> torch.Tensor:
    """The decoder of keys with its numbers in the columns of tiles: float32 ``[kv_heads, columns, head_dim]``."""
    return in_columns(per_head(codec, codec.key.decoder), codec.key.form).transpose(1, 2).contiguous()


def restore(available: dict[str, Any], shape: LayerShape, part: Pass) -> None:
    """Writes the keys and the values of one pass."""
    keys, values = ceil_div(shape.head_dim, available["TILE_KEY"]), ceil_div(shape.rank_v, available["TILE_VALUE"])
    restore_keys_kernel[(part.tiles, part.groups, keys)](**taken_by(restore_keys_kernel, available))
    restore_values_kernel[(part.tiles, part.groups, values)](**taken_by(restore_values_kernel, available))
