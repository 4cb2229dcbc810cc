"""vLLM's ``int4_per_token_head`` and ``int8_per_token_head``: one scale per token and head.

4 bits are asymmetric after a randomized Hadamard transform, and the zero point lies in the last 4 bits of the float32
scale. 8 bits are symmetric and not mixed. Both round halves away from zero.
"""

from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.judge.arms.arm import CacheArm, Layer
from benchmarks.judge.arms.mixing import hadamard, half_away
from palu_vllm.format.kv import KV

SCALE_BYTES, SMALLEST_SCALE = 4, 1e-6
SIGN_SEED = 0x9E3779B9  # vLLM's


@cache
def signs(size: int) -> torch.Tensor:
    """vLLM's signs before the Hadamard transform."""
    generator = torch.Generator().manual_seed(SIGN_SEED)
    return 2.0 * torch.bernoulli(torch.full((size,), 0.5), generator=generator) - 1.0


def int4(x: torch.Tensor) -> torch.Tensor:
    """``x [..., head_dim]`` as 4-bit codes give it back: mixed by blocks of the largest power of two."""
    block = x.shape[-1] & -x.shape[-1]
    matrix = hadamard(block) * block**0.5  # vLLM's transform is not normalised
    mixed = (x.unflatten(-1, (-1, block)) * signs(block) @ matrix).flatten(-2)
    low, high = mixed.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).clamp_min(SMALLEST_SCALE)
    zero = half_away(-low / scale).clamp(0, 15)
    codes = half_away(mixed * (1 / scale) + zero).clamp(0, 15)
    stored = (scale.view(torch.int32) & -16 | zero.int()).view(torch.float32)
    read = (codes - zero) * stored
    return (read.unflatten(-1, (-1, block)) @ matrix * signs(block)).flatten(-2) / block


def int8(x: torch.Tensor) -> torch.Tensor:
    """``x [..., head_dim]`` as 8-bit codes give it back."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(SMALLEST_SCALE)
    return half_away(x * (1 / scale)).clamp(-128, 127) * scale


@dataclass(frozen=True)
class PerTokenHead(CacheArm):
    bits: int

    @property
    def name(self) -> str:
        return f"int{self.bits}_per_token_head"

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        through = {4: int4, 8: int8}[self.bits]
        return KV(*map(through, whole))

    def head_bytes(self, head_dim: int) -> float:
        return 2 * (head_dim * self.bits / 8 + SCALE_BYTES)
