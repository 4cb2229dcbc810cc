"""GEAR (Kang et al. 2024, arXiv 2403.05527): codes, a low-rank matrix of their error, and sparse outliers.

KCVT is the quantizer alone: keys per channel, values per token, one scale over the whole chunk or token.
"""

from dataclasses import dataclass

import torch

from benchmarks.methods.coded.codes import Codes
from benchmarks.methods.coded.low_rank import LowRank, rank_of
from benchmarks.methods.coded.outliers import Outliers
from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect

MODES = {  # compress_mode -> (groups of group_size, low-rank error, outliers)
    "KCVT": (False, False, False),
    "KIVI_V2": (True, False, False),
    "GEAR": (True, True, True),
    "GEAR-KCVT": (False, True, True),
    "GEARL": (True, True, False),
    "GEARL-KCVT": (False, True, False),
    "gear_batch": (False, True, True),
}


@dataclass(frozen=True, kw_only=True)
class GEAR(Method):
    """``compress_mode`` takes the names of the current code and ``gear_batch``, the old one of GEAR-KCVT.

    ``rank`` (keys) and ``rankv`` (values) are a fraction of the full rank of a chunk where they are below 1, as in the
    old code, and a number of columns otherwise, as in the current one; ``prefillrank`` and ``prefillrankv`` are those
    of the prompt, None for the same. ``left`` is the share of outliers, half of them the largest and half the smallest
    of a channel of keys or a token of values. With ``stream``, new tokens wait in full precision until there are
    ``streaming_gap`` of them, and then are a chunk; without, they stay as they are.
    """

    name = "gear"

    compress_mode: str = "GEAR-KCVT"
    quantize_bit: int = 4
    group_size: int = 64
    left: float = 0.02
    rank: float = 2
    rankv: float = 2
    prefillrank: float | None = 4
    prefillrankv: float | None = 4
    loop: int = 3
    stream: bool = True
    streaming_gap: int = 64

    def __post_init__(self) -> None:
        expect(self.compress_mode in MODES, f"compress_mode is {self.compress_mode!r}, expected one of {list(MODES)}")
        expect(0 <= self.left < 1, f"left is {self.left}, expected a share from 0 to below 1")
        expect(self.streaming_gap > 0 and self.loop > 0, "streaming_gap and loop have to be positive")
        whole = not self.has_groups or self.streaming_gap % self.group_size == 0
        expect(whole, f"streaming_gap is {self.streaming_gap}, expected a multiple of group_size {self.group_size}")

    @property
    def has_groups(self) -> bool:
        return MODES[self.compress_mode][0]

    def store(self, layer: Layer) -> Store:
        width = layer.num_kv_heads * layer.head_dim
        fits = not self.has_groups or width % self.group_size == 0
        expect(fits, f"values of {width} numbers are no groups of {self.group_size}")
        return GEARStore(self, layer)


@dataclass(frozen=True)
class Part:
    """Keys or values of one chunk, as rows: a channel of keys over the tokens, or a token of values over all heads."""

    codes: Codes
    outliers: Outliers | None
    error: LowRank | None
    kv_heads: int

    def read(self, keys: bool) -> torch.Tensor:
        """float32 ``[kv_heads, tokens, head_dim]``."""
        rows = self.codes.read()
        rows = rows if self.outliers is None else self.outliers.restored(rows)
        heads = from_rows(rows, self.kv_heads, keys)
        return heads if self.error is None else heads + self.error.read()


def to_rows(x: torch.Tensor, keys: bool) -> torch.Tensor:
    """``[kv_heads, tokens, head_dim]`` to ``[kv_heads * head_dim, tokens]`` of keys, ``[tokens, ...]`` of values."""
    rows = x.transpose(1, 2).flatten(0, 1) if keys else x.transpose(0, 1).flatten(1)
    return rows.float().contiguous()


def from_rows(rows: torch.Tensor, kv_heads: int, keys: bool) -> torch.Tensor:
    if keys:
        return rows.unflatten(0, (kv_heads, -1)).transpose(1, 2)
    return rows.unflatten(1, (kv_heads, -1)).transpose(0, 1)


def compress(x: torch.Tensor, method: GEAR, keys: bool, rank: float, dtype: torch.dtype) -> Part:
    """``x [kv_heads, tokens, head_dim]`` of one chunk. Outliers stand aside, replaced by the mean of the rest
    of their row."""
    has_groups, has_error, has_outliers = MODES[method.compress_mode]
    rows = to_rows(x, keys)
    outliers, filled = None, rows
    if has_outliers and (count := int(method.left * rows.shape[1] / 2)):
        outliers = Outliers.extremes(rows, count, dtype)
        rest = outliers.replaced(rows, rows.new_zeros(1)).sum(-1, keepdim=True) / (rows.shape[1] - 2 * count)
        filled = outliers.replaced(rows, rest)
    codes = Codes.of(filled, method.quantize_bit, method.group_size if has_groups else rows.shape[1])
    part = Part(codes, outliers, None, x.shape[0])
    columns = rank_of(rank, x.shape[1], x.shape[2])
    if not has_error or not columns:
        return part
    error = LowRank.of(x.float() - part.read(keys), columns, method.loop, dtype)
    return Part(codes, outliers, error, x.shape[0])


class GEARStore(Store):
    """Chunks that are compressed once, and a buffer of new tokens."""

    def __init__(self, method: GEAR, layer: Layer) -> None:
        self.method, self.layer = method, layer
        self.chunks: list[tuple[Part, Part]] = []
        self.buffer = DenseStore(layer)
        self.is_prompt = True

    def append(self, tokens: Tokens) -> None:
        self.buffer.append(tokens)
        length = self.buffer.keys.shape[1]
        if self.is_prompt:
            ranks = self._prompt_ranks()
            self._compress(length - (length % self.method.group_size if self.method.has_groups else 0), ranks)
        elif self.method.stream:
            gap = self.method.streaming_gap
            while self.buffer.keys.shape[1] >= gap:
                self._compress(gap, (self.method.rank, self.method.rankv))
        self.is_prompt = False

    def _prompt_ranks(self) -> tuple[float, float]:
        method = self.method
        rank = method.rank if method.prefillrank is None else method.prefillrank
        return rank, method.rankv if method.prefillrankv is None else method.prefillrankv

    def _compress(self, count: int, ranks: tuple[float, float]) -> None:
        if not count:
            return
        buffer, dtype = self.buffer, self.layer.dtype
        keys = compress(buffer.keys[:, :count], self.method, True, ranks[0], dtype)
        values = compress(buffer.values[:, :count], self.method, False, ranks[1], dtype)
        self.chunks.append((keys, values))
        buffer.keys, buffer.values = buffer.keys[:, count:].clone(), buffer.values[:, count:].clone()

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys = [part.read(keys=True) for part, _ in self.chunks]
        values = [part.read(keys=False) for _, part in self.chunks]
        return torch.cat([*keys, self.buffer.keys.float()], 1), torch.cat([*values, self.buffer.values.float()], 1)
