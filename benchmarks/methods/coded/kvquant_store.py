"""What KVQuant keeps: codes of non-uniform levels, and outliers, of one token after another."""

from dataclasses import dataclass

import torch

from benchmarks.methods.coded.outliers import Outliers, index_dtype
from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Store, Tokens, part
from benchmarks.methods.harness.rotary import rotate, unrotate
from palu_vllm.format.packing import pack_codes, unpack_codes


@dataclass(frozen=True)
class Ranges:
    """What is known of a layer: the range of each channel of keys, and levels in ``[-1, 1]``."""

    key_middle: torch.Tensor  # [num_kv_heads * head_dim]
    key_half: torch.Tensor  # [num_kv_heads * head_dim], half the width of the range
    key_levels: torch.Tensor  # [2^abits], rising
    value_levels: torch.Tensor  # [2^abits], rising


def flat(x: torch.Tensor) -> torch.Tensor:
    """``[..., kv_heads, tokens, head_dim]`` to float32 ``[..., tokens, kv_heads * head_dim]``."""
    return x.float().transpose(-3, -2).flatten(-2)


def value_range(rows: torch.Tensor, count: int, dtype: torch.dtype) -> tuple[Outliers, torch.Tensor, torch.Tensor]:
    """The ``count`` extremes at either side of each token of ``rows [tokens, width]``, and of the rest the middle and
    half the range, float16 ``[tokens, 1]``.
    """
    outliers, ordered = Outliers.extremes(rows, count, dtype), rows
    if count:  # a row without its extremes runs from the next smallest number to the next largest
        ordered = torch.cat([rows.topk(count + 1, largest=side).values[:, count:] for side in (False, True)], 1)
    low, high = ordered.aminmax(dim=1, keepdim=True)
    return outliers, ((high + low) / 2).half(), ((high - low) / 2).clamp(min=1e-4).half()


@dataclass(frozen=True)
class Rows:
    """Keys or values of tokens, each a row of ``width`` numbers over all heads."""

    packed: torch.Tensor  # uint8 [tokens, bytes]
    indices: torch.Tensor  # of outliers [tokens, 2 * count]
    exact: torch.Tensor  # outliers [tokens, 2 * count]
    ranges: tuple[torch.Tensor, ...]  # of values middle and half, float16 [tokens, 1]; of keys nothing

    @classmethod
    def of(cls, normal: torch.Tensor, levels: torch.Tensor, outliers: Outliers, *ranges: torch.Tensor) -> "Rows":
        """``normal [tokens, width]`` is what the nearest of ``levels`` stands for; outliers may be anything."""
        codes = torch.bucketize(normal, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        return cls(pack_codes(codes, bits_of(levels)), outliers.indices, outliers.values, ranges)

    def followed_by(self, other: "Rows") -> "Rows":
        ranges = tuple(torch.cat(pair) for pair in zip(self.ranges, other.ranges, strict=True))
        packed, indices = torch.cat((self.packed, other.packed)), torch.cat((self.indices, other.indices))
        return Rows(packed, indices, torch.cat((self.exact, other.exact)), ranges)

    def read(self, levels: torch.Tensor, middle: torch.Tensor, half: torch.Tensor, width: int) -> torch.Tensor:
        """float32 ``[tokens, width]``."""
        codes = unpack_codes(self.packed, width, bits_of(levels))
        return Outliers(self.indices, self.exact).restored(levels[codes.long()] * half.float() + middle.float())


def bits_of(levels: torch.Tensor) -> int:
    return (len(levels) - 1).bit_length()


def farthest(normal: torch.Tensor, rows: torch.Tensor, count: int, dtype: torch.dtype) -> Outliers:
    """The ``count`` numbers of each row that are farthest from the middle of their channels."""
    indices = normal.abs().topk(count, dim=-1).indices
    return Outliers(indices.to(index_dtype(rows.shape[1])), rows.gather(1, indices).to(dtype))


class KVQuantStore(Store):
    """Keys are unrotated. Positions are counted on from the first, so they take no memory."""

    def __init__(self, ranges: Ranges, layer: Layer, outliers: int, first: int) -> None:
        self.constants = (ranges,)
        self.layer, self.count, self.first = layer, outliers, first
        self.first_position = 0
        self.sinks = DenseStore(layer)
        self.rows: tuple[Rows, Rows] | None = None

    def append(self, tokens: Tokens) -> None:
        missing = self.first - self.sinks.keys.shape[1]
        if missing > 0:
            self.sinks.append(part(tokens, slice(0, missing)))
        tokens = part(tokens, slice(max(0, missing), None))
        if not tokens.keys.shape[1]:
            return
        if self.rows is None:
            self.first_position = int(tokens.positions[0, 0])
        new = self._keys(tokens), self._values(tokens)
        self.rows = new if self.rows is None else (self.rows[0].followed_by(new[0]), self.rows[1].followed_by(new[1]))

    def _keys(self, tokens: Tokens) -> Rows:
        ranges = self.constants[0]
        rows = flat(unrotate(tokens.keys, tokens.positions[0], self.layer))
        normal = (rows - ranges.key_middle) / ranges.key_half
        return Rows.of(normal, ranges.key_levels, farthest(normal, rows, 2 * self.count, self.layer.dtype))

    def _values(self, tokens: Tokens) -> Rows:
        rows = flat(tokens.values)
        outliers, middle, half = value_range(rows, self.count, self.layer.dtype)
        normal = (rows - middle.float()) / half.float()
        return Rows.of(normal, self.constants[0].value_levels, outliers, middle, half)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        sinks = [each.float() for each in self.sinks.read()]
        if self.rows is None:
            return sinks[0], sinks[1]
        ranges, layer = self.constants[0], self.layer
        width = layer.num_kv_heads * layer.head_dim
        flat_keys = self.rows[0].read(ranges.key_levels, ranges.key_middle, ranges.key_half, width)
        middle, half = self.rows[1].ranges
        flat_values = self.rows[1].read(ranges.value_levels, middle, half, width)
        positions = torch.arange(len(flat_keys), device=flat_keys.device) + self.first_position
        keys, values = (x.unflatten(1, (layer.num_kv_heads, -1)).transpose(0, 1) for x in (flat_keys, flat_values))
        return torch.cat([sinks[0], rotate(keys, positions, layer)], 1), torch.cat([sinks[1], values], 1)
