"""The ways of storing latents that are tried for a budget: ranks, and tiers of bits."""

from dataclasses import dataclass

import torch

from offline_compress.hadamard import rotation_of_tiers, spreading_matrix
from offline_compress.plan import Plan
from offline_compress.rank_allocation import rank_tile
from offline_compress.storage_errors import Storage
from palu_vllm.latent_format import Shares, cut_into_tiers

MOST_RANKS = 16
TIERS: tuple[Shares, ...] = (
    *(((1.0, bits),) for bits in (16, 8, 4, 3, 2)),
    ((0.125, 8), (0.875, 4)),
    ((0.25, 8), (0.75, 4)),
    ((0.25, 8), (0.75, 3)),
    ((0.25, 4), (0.75, 3)),
    ((0.5, 4), (0.5, 3)),
    ((0.25, 4), (0.75, 2)),
    ((0.5, 4), (0.5, 2)),
    ((0.5, 3), (0.5, 2)),
    ((0.125, 8), (0.375, 4), (0.5, 3)),
)


@dataclass(frozen=True)
class Grid:
    """Ranks and tiers, the same for every layer."""

    plan: Plan
    ranks: tuple[int, ...]
    tiers_k: tuple[Shares, ...]
    tiers_v: tuple[Shares, ...]

    @classmethod
    def of(cls, plan: Plan) -> "Grid":
        """All of them, or only the tiers that were asked for."""
        options = plan.options
        tiers_k = (options.shares_k,) if options.fixes_tiers_k else TIERS
        tiers_v = (options.shares_v,) if options.fixes_tiers_v else TIERS
        return cls(plan, candidate_ranks(plan.full_rank, rank_tile(plan.full_rank)), tiers_k, tiers_v)

    def keys(self) -> list[list[Storage]]:
        """``[ranks][tiers]`` of K. Keys of full rank are not rotated: they are stored as rotary pairs."""
        return [[self._storage(rank, shares, None) for shares in self.tiers_k] for rank in self.ranks]

    def values(self) -> list[list[Storage]]:
        """``[ranks][tiers]`` of V. Values of full rank are rotated head by head."""
        head = spreading_matrix(self.plan.geometry.head_dim)
        whole = torch.block_diag(*[head] * self.plan.group_size)
        return [[self._storage(rank, shares, whole) for shares in self.tiers_v] for rank in self.ranks]

    def _storage(self, rank: int, shares: Shares, rotation_of_whole: torch.Tensor | None) -> Storage:
        rotation = None
        if self.plan.rotates([shares]):
            whole = rank == self.plan.full_rank
            rotation = rotation_of_whole if whole else rotation_of_tiers(cut_into_tiers(rank, shares))
        return Storage(self.plan.latent_format(rank, shares), rotation, self.plan.searches_clip)

    @property
    def smallest_bytes(self) -> int:
        """Of all layers' keys and values of one token."""
        lowest = self.ranks[0]
        parts = [min(self.bytes(lowest, shares) for shares in tiers) for tiers in (self.tiers_k, self.tiers_v)]
        return self.plan.geometry.num_layers * sum(parts)

    def bytes(self, rank: int, shares: Shares) -> int:
        """Of one layer's keys or values of one token."""
        return self.plan.num_groups * self.plan.latent_format(rank, shares).bytes


def candidate_ranks(full: int, tile: int) -> tuple[int, ...]:
    """At most ``MOST_RANKS`` multiples of ``tile`` up to full rank, evenly spaced."""
    step = tile * -(-full // (tile * MOST_RANKS))
    return (*range(step, full, step), full)
