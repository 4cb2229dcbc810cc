"""Storing new tokens: float64 products with the encoders, then the kernel of ``store``.

The specification makes its products in float64, because their rounding decides codes. cuBLAS does so on the tensor
cores of sm_80, sm_90 and sm_100; sm_89 has few float64 units, and storing a long prompt is slow there.
"""

from typing import Any

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.kernels.checks import expect_dense_rows
from palu_vllm.kernels.gpu.bound import BoundKernel
from palu_vllm.kernels.gpu.codec.layout import code_tiles, used_bytes
from palu_vllm.kernels.gpu.codec.operands import DevicePositions, side_operands
from palu_vllm.kernels.gpu.codec.storing.store import store_codes_kernel
from palu_vllm.kernels.gpu.codec.storing.widen import widen_kernel


class CodeStore:
    """What tokens of one layer are stored with."""

    def __init__(self, codec: LayerCodec, levels: torch.Tensor, positions: DevicePositions) -> None:
        self.codec, self.levels, self.positions = codec, levels, positions
        self.encoder_k, self.encoder_v = (
            side.encoder.transpose(1, 2).contiguous() for side in (codec.key, codec.value)
        )
        self.widen = BoundKernel(widen_kernel, self.shape_constants())
        self.code = BoundKernel(store_codes_kernel, self.layer_constants())

    def shape_constants(self) -> dict[str, Any]:
        """What the kernel of wide numbers is given in every step."""
        codec = self.codec
        return {
            "centre_cos_ptr": codec.centre_cos.contiguous(), "centre_sin_ptr": codec.centre_sin.contiguous(),
            "frequency_of_ptr": codec.frequency_of, "FREQUENCIES": len(codec.frequencies),
            "FEATURES": self.positions.rows.shape[1], "GROUP_SIZE": codec.num_kv_heads // codec.num_groups,
            "KEY_DIM": codec.key.sink.shape[1], "VALUE_DIM": codec.value.sink.shape[1],
            "num_warps": 1, "enable_fp_fusion": False,
        }  # fmt: skip

    def layer_constants(self) -> dict[str, Any]:
        """What the kernel of codes is given in every step."""
        codec, slot = self.codec, self.codec.slot
        key, value = (side_operands(side.form, side.numbers(side.sink)) for side in (codec.key, codec.value))
        return {
            "sink_k_ptr": key.sink, "sink_v_ptr": value.sink,
            "usual_v_ptr": codec.value.numbers(codec.value_mean).contiguous(),
            "units_k_ptr": key.units, "units_v_ptr": value.units,
            "weights_k_ptr": key.weights, "weights_v_ptr": value.weights, "levels_ptr": self.levels,
            "TILES_K": code_tiles(slot.key, slot.key_start), "TILES_V": code_tiles(slot.value, slot.value_start),
            "RANK_K": slot.key.rank, "RANK_V": slot.value.rank,
            "USED_K": slot.key_start + used_bytes(slot.key), "STOP_K": slot.value_start,
            "USED_V": slot.value_start + used_bytes(slot.value), "STOP_V": slot.bytes,
            "num_warps": 4,
        }  # fmt: skip

    def put(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Writes one slot of every group per entry of ``slot_mapping`` that is not negative; rows past them are not
        looked at. Raises ValueError for heads whose numbers do not lie side by side.
        """
        expect_dense_rows(key=key, value=value)
        tokens, groups = slot_mapping.shape[0], self.codec.num_groups
        keys, values = self.wide(key, value, positions, tokens)
        stride_block, stride_group, stride_slot, _ = cache.stride()
        y_k = torch.bmm(keys, self.encoder_k)
        self.code.launch(
            (tokens, groups, 1),
            {
                "y_k_ptr": y_k, "usual_k_ptr": y_k[:, tokens:], "y_v_ptr": torch.bmm(values, self.encoder_v),
                "cache_ptr": cache, "slot_mapping_ptr": slot_mapping, "tokens": tokens, "block_size": cache.shape[2],
                "stride_cache_block": stride_block, "stride_cache_group": stride_group,
                "stride_cache_slot": stride_slot,
            },
        )  # fmt: skip

    def wide(
        self, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor, tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Float64: keys and then their usual centres, ``[groups, 2 * tokens, dim]``, and values ``[groups, tokens,
        dim]``, of whole groups.
        """
        groups, place = self.codec.num_groups, {"dtype": torch.float64, "device": key.device}
        keys = torch.empty(groups, 2 * tokens, self.encoder_k.shape[1], **place)
        values = torch.empty(groups, tokens, self.encoder_v.shape[1], **place)
        blocks, positions = self.features_of(positions)
        key_strides, value_strides = key.stride(), value.stride()
        self.widen.launch(
            (tokens, self.codec.num_kv_heads, 1),
            {
                "key_ptr": key, "value_ptr": value, "positions_ptr": positions, "blocks_ptr": blocks,
                "wide_key_ptr": keys, "wide_value_ptr": values, "tokens": tokens, "num_blocks": blocks.shape[0],
                "stride_key_token": key_strides[0], "stride_key_head": key_strides[1],
                "stride_value_token": value_strides[0], "stride_value_head": value_strides[1],
            },
        )  # fmt: skip
        return keys, values

    def features_of(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A table of features and positions in it: that of all texts where it is long enough for any, else one row for
        every token.
        """
        if self.positions.whole is not None:
            return self.positions.whole, positions
        rows = torch.nn.functional.pad(features(self.codec.frequencies, positions // BLOCK), self.positions.padding)
        return rows, BLOCK * torch.arange(len(positions), device=positions.device)
