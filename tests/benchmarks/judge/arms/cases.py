"""Keys and values with what makes real ones hard: a few large channels, and a first token unlike all others."""

import torch

from benchmarks.judge.arms.arm import Layer
from palu_vllm.format.kv import KV

MIDDLE = Layer(5, 12)


def heads(tokens: int = 300, head_dim: int = 64, batch: int = 1, kv_heads: int = 3) -> KV[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens + head_dim)
    key, value = torch.randn(2, batch, kv_heads, tokens, head_dim, generator=generator)
    key[..., ::17] *= 6
    key[:, :, 0] *= 8
    return KV(key, value)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).square().sum() / exact.square().sum()).item()
