"""Storing new tokens: float64 products with the encoders, then the kernel of ``store``.

The specification makes its products in float64, because their rounding decides codes. cuBLAS does so on the tensor
cores of sm_80, sm_90 and sm_100; sm_89 has few float64 units, and storing a long prompt is slow there.
"""

from typing import Any

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.kernels.gpu.codec.layout import code_tiles, used_bytes
from palu_vllm.kernels.gpu.codec.operands import DevicePositions, side_operands
from palu_vllm.kernels.gpu.codec.store import store_codes_kernel


class CodeStore:
    """What tokens of one layer are stored with."""

    def __init__(self, codec: LayerCodec, levels: torch.Tensor, positions: DevicePositions) -> None:
        self.codec, self.levels, self.positions = codec, levels, positions
        self.encoder_k, self.encoder_v = (
            side.encoder.transpose(1, 2).contiguous() for side in (codec.key, codec.value)
        )
        self.key = side_operands(codec.key.form, codec.key.numbers(codec.key.sink))
        self.value = side_operands(codec.value.form, codec.value.numbers(codec.value.sink))
        self.constants = self.layer_constants()

    def layer_constants(self) -> dict[str, Any]:
        """What the kernel is given in every step."""
        codec, slot = self.codec, self.codec.slot
        return {
            "sink_k_ptr": self.key.sink, "sink_v_ptr": self.value.sink,
            "usual_v_ptr": codec.value.numbers(codec.value_mean).contiguous(),
            "units_k_ptr": self.key.units, "units_v_ptr": self.value.units,
            "weights_k_ptr": self.key.weights, "weights_v_ptr": self.value.weights, "levels_ptr": self.levels,
            "TILES_K": code_tiles(slot.key, slot.key_start), "TILES_V": code_tiles(slot.value, slot.value_start),
            "RANK_K": slot.key.rank, "RANK_V": slot.value.rank,
            "USED_K": slot.key_start + used_bytes(slot.key), "STOP_K": slot.value_start,
            "USED_V": slot.value_start + used_bytes(slot.value), "STOP_V": slot.bytes,
        }  # fmt: skip

    def put(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Writes one slot of every group per entry of ``slot_mapping`` that is not negative."""
        codec = self.codec
        y_k, usual_k = (numbers(heads, codec.key, self.encoder_k) for heads in (key, self.centres(positions)))
        store_codes_kernel[(len(slot_mapping), codec.num_groups)](
            **self.constants, y_k_ptr=y_k, usual_k_ptr=usual_k, y_v_ptr=numbers(value, codec.value, self.encoder_v),
            cache_ptr=cache, slot_mapping_ptr=slot_mapping, tokens=len(slot_mapping), block_size=cache.shape[2],
            stride_cache_block=cache.stride(0), stride_cache_group=cache.stride(1), stride_cache_slot=cache.stride(2),
            num_warps=4,
        )  # fmt: skip

    def centres(self, positions: torch.Tensor) -> torch.Tensor:
        """The usual centres of keys, float32 ``[tokens, kv_heads, head_dim]``; from the table where it is long enough
        for any text, else from cosines of every token's block.
        """
        codec, blocks = self.codec, positions // BLOCK
        table, width = self.positions.whole, 2 * len(codec.frequencies)
        known = None if table is None else blocks.clamp(max=len(table) - 1)  # padding may have any position
        rows = features(codec.frequencies, blocks) if table is None else table[known, :width]
        cos, sin = rows.chunk(2, dim=-1)
        of = codec.frequency_of
        return codec.centre_cos * cos[:, None, of] + codec.centre_sin * sin[:, None, of]


def numbers(heads: torch.Tensor, side: SideCodec, encoder: torch.Tensor) -> torch.Tensor:
    """``E x`` in float64, contiguous ``[groups, tokens, rank]``."""
    return torch.bmm(side.grouped(heads).transpose(0, 1).double(), encoder)
