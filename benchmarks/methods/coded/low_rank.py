"""Low-rank approximation of a matrix, by power iteration as GEAR does it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """``left right^T`` per KV head."""

    left: torch.Tensor  # [kv_heads, tokens, rank]
    right: torch.Tensor  # [kv_heads, head_dim, rank]

    @classmethod
    def of(cls, x: torch.Tensor, rank: int, loop: int, dtype: torch.dtype) -> "LowRank":
        """``x [kv_heads, tokens, head_dim]`` after ``loop`` iterations from a fixed random start.

        ``left`` is orthonormal and ``right = x^T left``: subtracting the product never makes ``x`` larger.
        """
        x = x.float()
        generator = torch.Generator().manual_seed(0)
        right = torch.rand(x.shape[0], x.shape[2], rank, generator=generator).to(x.device)
        for _ in range(loop):
            left = torch.linalg.qr(x @ torch.linalg.qr(right).Q).Q
            right = x.mT @ left
        return cls(left.to(dtype), right.to(dtype))

    def read(self) -> torch.Tensor:
        """float32 ``[kv_heads, tokens, head_dim]``."""
        return self.left.float() @ self.right.float().mT


def rank_of(rank: float, tokens: int, head_dim: int) -> int:
    """A rank below 1 is a fraction of the full one, at least 1 unless it is 0; others are taken as they are."""
    full = min(tokens, head_dim)
    return min(full, max(1, int(rank * full)) if 0 < rank < 1 else int(rank))
