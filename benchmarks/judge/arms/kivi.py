"""KIVI (Liu et al. 2024, arXiv 2402.02750): keys per channel over 32 tokens, values per token over 32 channels.

New tokens wait in 16 bits: keys until there are 128 of them, values until 128 newer ones have come.
"""

from dataclasses import dataclass

import torch

from benchmarks.judge.arms.arm import HALF, CacheArm, Heads, Layer
from benchmarks.judge.arms.mixing import float16
from palu_vllm.format.kv import KV


def coded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """``x [..., group]`` in equal steps from the least one, with scale and minimum in 16 bits."""
    low, high = x.aminmax(dim=-1, keepdim=True)
    step = float16((high - low) / (2**bits - 1)).clamp_min(1e-7)
    low = float16(low)
    return ((x - low) / step).round().clamp(0, 2**bits - 1) * step + low


@dataclass(frozen=True)
class Kivi(CacheArm):
    bits: int
    group: int = 32
    residual: int = 128

    @property
    def name(self) -> str:
        return f"kivi_{self.bits}bit_r{self.residual}"

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        full = whole.key.shape[2] // self.group * self.group
        by_channel = whole.key[:, :, :full].mT.unflatten(-1, (-1, self.group))
        keys = torch.cat([coded(by_channel, self.bits).flatten(-2).mT, whole.key[:, :, full:]], 2)
        values = coded(whole.value.unflatten(-1, (-1, min(self.group, whole.value.shape[-1]))), self.bits).flatten(-2)
        return KV(keys, values)

    def exact(self, tokens: int, device: torch.device) -> KV[torch.Tensor]:
        query, key = torch.arange(tokens, device=device)[:, None], torch.arange(tokens, device=device)
        return KV(key >= query // self.residual * self.residual, key >= query - self.residual)

    def head_bytes(self, head_dim: int) -> float:
        """Codes, and scale and minimum of each group, of keys and of values."""
        scales = 2 * HALF * (1 / self.group + 1 / min(self.group, head_dim))
        return head_dim * (2 * self.bits / 8 + scales)

    def coded_fraction(self, heads: Heads, context: int) -> float:
        keys, values = context // self.residual * self.residual, max(0, context - self.residual)
        return (keys + values) / (2 * context)
