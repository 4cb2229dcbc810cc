"""What the kernels are given of a codec's layer, made once on its device."""

import math
from dataclasses import dataclass

import torch

from palu_vllm.format.codec.coding import units
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.levels import levels, thresholds, unit
from palu_vllm.format.latent_format import CodedFormat
from palu_vllm.kernels.codec.constants import PositionTable, position_table, query_map, value_map
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.gpu.codec.layout import in_columns
from palu_vllm.kernels.gpu.codec.plan import features_width

LOG2_E = 1 / math.log(2)


def level_table() -> torch.Tensor:
    """Float32 ``[128]``: the levels of b bits from number ``2^b`` on, and what lies halfway below each from
    ``64 + 2^b`` on.
    """
    table = torch.zeros(128)
    for bits in range(2, 6):
        table[1 << bits : 2 << bits] = levels(bits)
        table[64 + (1 << bits) + 1 : 64 + (2 << bits)] = thresholds(bits)
    return table


def columns_of_queries(codec: LayerCodec, settings: CodecSettings) -> torch.Tensor:
    """``query_map`` with its numbers in the columns of tiles, the features of positions and, last, the score with the
    sinks' centre: float32 ``[kv_heads, head_dim, columns]``. Scores come out in units of log 2, or, with a soft cap, as
    twice what its tanh is taken of in these units.
    """
    matrix, form = query_map(codec, settings), codec.key.form
    rank, width = form.rank, 2 * len(codec.frequencies)
    folded = torch.nn.functional.pad(matrix[..., rank + 1 :], (0, features_width(width) - width))
    ordered = torch.cat((in_columns(matrix[..., :rank], form), folded, matrix[..., rank : rank + 1]), dim=-1)
    return ordered * (LOG2_E * 2 / settings.soft_cap if settings.soft_cap else LOG2_E)


def rows_of_values(codec: LayerCodec) -> torch.Tensor:
    """``value_map`` with its numbers in the columns of tiles: float32 ``[kv_heads, columns + 2, value_dim]``."""
    matrix, rank = value_map(codec).transpose(1, 2), codec.value.form.rank
    ordered = torch.cat((in_columns(matrix[..., :rank], codec.value.form), matrix[..., rank:]), dim=-1)
    return ordered.transpose(1, 2).contiguous()


class DevicePositions:
    """The table of positions on a device, rows padded with zeros."""

    def __init__(self, table: PositionTable, device: torch.device) -> None:
        self.table = table
        width = 2 * len(table.frequencies)
        self.padding = (0, features_width(width) - width)
        self.rows = torch.empty(0, features_width(width), device=device)
        self.whole: torch.Tensor | None = None  # long enough for any text

    def up_to(self, length: int) -> torch.Tensor:
        """``[blocks, FEATURES]`` of the positions 0 to ``length - 1`` and perhaps more; copied where it grows."""
        rows = self.table.up_to(length)
        if len(rows) > len(self.rows):
            self.rows = torch.nn.functional.pad(rows, self.padding).to(self.rows.device)
        return self.rows

    def fit(self, max_seq_len: int) -> None:
        """Makes the table as long as a text may become."""
        self.whole = self.up_to(max_seq_len)


_positions: dict[tuple[int, torch.device], DevicePositions] = {}


def device_positions(frequencies: torch.Tensor, device: torch.device) -> DevicePositions:
    """One for all the layers with these frequencies on a device."""
    table = position_table(frequencies)
    return _positions.setdefault((id(table), device), DevicePositions(table, device))


@dataclass(frozen=True)
class SideOperands:
    """What K or V are stored with: ``units [rank]`` float32; ``weights [tiers]``, ``sink [groups, rank]`` float64."""

    units: torch.Tensor
    weights: torch.Tensor
    sink: torch.Tensor


def side_operands(form: CodedFormat, sink: torch.Tensor) -> SideOperands:
    weights = torch.tensor([unit(tier.bits) ** 2 for tier in form.tiers], dtype=torch.float64)
    return SideOperands(units(form).to(sink.device), weights.to(sink.device), sink.contiguous())
