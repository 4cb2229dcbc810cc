"""The ways of storing latents that are tried for a budget: ranks, and tiers of bits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from offline_compress.grouping import Grouping
from offline_compress.plan import Plan
from offline_compress.ranks.storage_errors import Storage
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import TierFractions, cut_into_tiers
from palu_vllm.format.mixing import mixing_of_tiers, spreading_matrix
from palu_vllm.format.shape import rank_step

MOST_RANKS = 16
TIERS: tuple[TierFractions, ...] = (
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
    """Ranks and tiers of K or of V, the same for every layer.

    Keys of full rank are not mixed: they are stored as rotary pairs. Values of full rank are, head by head.
    """

    plan: Plan
    groups: Grouping
    tiers: tuple[TierFractions, ...]
    mixes_whole: bool

    @property
    def ranks(self) -> tuple[int, ...]:
        return candidate_ranks(self.groups.full_rank)

    def storages(self) -> list[list[Storage]]:
        """``[ranks][tiers]``."""
        return [[self.storage(rank, fractions) for fractions in self.tiers] for rank in self.ranks]

    def storage(self, rank: int, fractions: TierFractions) -> Storage:
        mixing: Callable[[], torch.Tensor] | None = partial(mixing_of_tiers, cut_into_tiers(rank, fractions))
        if rank == self.groups.full_rank:
            mixing = self._mixing_of_whole if self.mixes_whole else None
        if not self.plan.mixes([fractions]):
            mixing = None
        return Storage(self.plan.latent_format(rank, fractions), mixing, self.plan.searches_clip)

    def _mixing_of_whole(self) -> torch.Tensor:
        return torch.block_diag(*[spreading_matrix(self.plan.geometry.head_dim)] * self.groups.size)

    @property
    def smallest_bytes(self) -> int:
        """Of one layer."""
        return min(self.bytes(self.ranks[0], fractions) for fractions in self.tiers)

    def bytes(self, rank: int, fractions: TierFractions) -> int:
        """Of one layer and token."""
        return self.groups.num_groups * self.plan.latent_format(rank, fractions).bytes


def grids(plan: Plan) -> KV[Grid]:
    """All tiers, or only those that were asked for."""
    options = plan.options
    tiers_k = (options.fractions_k,) if options.fixes_tiers_k else TIERS
    tiers_v = (options.fractions_v,) if options.fixes_tiers_v else TIERS
    return KV(Grid(plan, plan.groupings.key, tiers_k, False), Grid(plan, plan.groupings.value, tiers_v, True))


def candidate_ranks(full: int) -> tuple[int, ...]:
    """At most ``MOST_RANKS`` ranks up to full rank, evenly spaced."""
    least = rank_step(full)
    step = least * -(-full // (least * MOST_RANKS))
    return (*range(step, full, step), full)
