"""KVarN (Muller et al. 2026, arXiv 2606.03458) as its authors' pull request to vLLM has it (46812, not merged).

A tile is 128 tokens of one head, mixed over channels. Its rows and columns get equal deviations by alternating scales,
the best of eight rounds; then each row is coded in equal steps, a row being a channel of keys and a token of values.
The first 128 tokens and the tile that is not full stay in 16 bits.
"""

from dataclasses import dataclass

import torch

from benchmarks.judge.arms.arm import HALF, CacheArm, Heads, Layer
from benchmarks.judge.arms.mixing import float16, hadamard
from palu_vllm.format.kv import KV

DEVIATIONS = (1e-3, 1e3)
LOG_SCALES = (-0.3, 10.0)


def imbalance(tiles: torch.Tensor) -> torch.Tensor:
    """``[n]``: largest over smallest deviation, of columns and of rows, added. Two is the least."""
    ratios = [deviations.amax(-1) / deviations.amin(-1).clamp_min(1e-8) for deviations in map(tiles.std, (-2, -1))]
    return sum(ratios[1:], ratios[0])


def balanced(tiles: torch.Tensor, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of rows ``[n, rows, 1]`` and of columns ``[n, 1, columns]`` that even out deviations best."""
    logs = [torch.zeros_like(tiles[:, :, :1]), torch.zeros_like(tiles[:, :1])]
    best, least = [log.exp() for log in logs], imbalance(tiles)
    for _ in range(rounds):
        for side, dim in ((1, 1), (0, 2)):  # columns first
            even = tiles / logs[0].exp() / logs[1].exp()
            deviations = even.std(dim, keepdim=True).clamp(*DEVIATIONS)
            logs[side] = (logs[side] + deviations.log()).clamp(*LOG_SCALES)
        found = imbalance(tiles / logs[0].exp() / logs[1].exp())
        better = found <= least
        best = [torch.where(better[:, None, None], log.exp(), old) for log, old in zip(logs, best, strict=True)]
        least = torch.where(better, found, least)
    return best[0], best[1]


def coded(tiles: torch.Tensor, bits: int, rounds: int) -> torch.Tensor:
    """``tiles [n, rows, columns]``, coded row by row and read back."""
    rows, columns = balanced(tiles, rounds)
    even = tiles / columns / rows
    low, high = even.aminmax(dim=-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-10)
    codes = ((even - low) / step).round().clamp(0, 2**bits - 1)
    return (codes * float16(step * rows) + float16(low * rows)) * float16(columns)


@dataclass(frozen=True)
class KVarN(CacheArm):
    key_bits: int
    value_bits: int
    tile: int = 128
    sinks: int = 128
    rounds: int = 8

    @property
    def name(self) -> str:
        return f"kvarn_k{self.key_bits}v{self.value_bits}_g{self.tile}"

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        return KV(self._side(whole.key, self.key_bits, True), self._side(whole.value, self.value_bits, False))

    def _side(self, x: torch.Tensor, bits: int, by_channel: bool) -> torch.Tensor:
        """Whole tiles of ``x [batch, heads, tokens, head_dim]`` coded, the rest as it is."""
        full, matrix = x.shape[2] // self.tile * self.tile, hadamard(x.shape[3])
        if not full:
            return x
        tiles = (x[:, :, :full] @ matrix).unflatten(2, (-1, self.tile)).flatten(0, 2)
        tiles = coded(tiles.mT if by_channel else tiles, bits, self.rounds)
        tiles = (tiles.mT if by_channel else tiles) @ matrix
        return torch.cat([tiles.reshape(x[:, :, :full].shape), x[:, :, full:]], 2)

    def exact(self, tokens: int, device: torch.device) -> KV[torch.Tensor]:
        """A tile is coded when its last token is stored, which the query of that token still sees as it was."""
        query, key = torch.arange(tokens, device=device)[:, None], torch.arange(tokens, device=device)
        seen = (key < self.sinks) | (key >= query // self.tile * self.tile)
        return KV(seen, seen)

    def head_bytes(self, head_dim: int) -> float:
        """Codes, scale and zero per row, scale per column, of keys and of values."""
        scales = HALF * (2 * head_dim + self.tile + head_dim + 2 * self.tile)
        return head_dim * (self.key_bits + self.value_bits) / 8 + scales / self.tile

    def coded_fraction(self, heads: Heads, context: int) -> float:
        return max(0, context // self.tile * self.tile - self.sinks) / context
