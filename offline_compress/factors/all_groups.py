"""The decomposition of ``decomposition.py`` for all groups of a projection, several at a time on threads."""

from collections.abc import Iterable

import torch

from offline_compress.factors.decomposition import BLOCK_ROWS, Factors, decompose_group, gram_matrix, group_energy
from offline_compress.grouping import Grouping
from offline_compress.plan import Plan
from offline_compress.run.workers import in_order

FLOAT64 = 8


def grams_of(weight: torch.Tensor, num_groups: int, second_moment: torch.Tensor | None = None) -> torch.Tensor:
    """:func:`gram_matrix` of every group of ``weight [num_groups * full, hidden]``: ``[num_groups, full, full]``."""
    groups = weight.chunk(num_groups)
    full = len(groups[0])
    grams = torch.empty(num_groups, full, full, dtype=torch.float64, device=weight.device).mT
    for own, found in zip(grams, in_order(lambda rows: gram_matrix(rows, second_moment), groups), strict=True):
        own.copy_(found)
    return grams


def decompose(
    weight: torch.Tensor, rank: int, grams: torch.Tensor, error_metric: torch.Tensor | None = None
) -> Factors:
    """Factors of a projection ``weight [num_groups * full, hidden]`` of any float dtype, equal rank in all groups.

    ``grams [num_groups, full, full]`` are those of :func:`grams_of`, ``error_metric`` holds ``A`` of each group.
    """
    num_groups, full, _ = grams.shape
    downs = torch.empty(num_groups, rank, weight.shape[1], dtype=torch.float64, device=weight.device)
    ups, lost, total = downs.new_empty(num_groups, rank, full), 0.0, 0.0
    found = in_order(
        lambda rows, gram, own: decompose_group(rows, rank, gram, own),
        weight.chunk(num_groups),
        grams,
        _each(error_metric, num_groups),
    )
    for group, (up, down, energy) in enumerate(found):
        downs[group], ups[group] = down, up.T
        lost, total = lost + energy[rank:].sum().item(), total + energy.sum().item()
    return Factors(downs.flatten(0, 1), ups, (lost / total) ** 0.5 if total else 0.0)


def discarded_energy(grams: torch.Tensor, error_metric: torch.Tensor | None = None) -> torch.Tensor:
    """What :func:`decompose` loses at every rank from 0 to full, squared: ``[full + 1]`` float64."""
    lost = torch.zeros(grams.shape[1] + 1, dtype=torch.float64)
    for energy in in_order(group_energy, grams, _each(error_metric, len(grams))):
        lost[:-1] += energy.cumsum(0).flip(0).cpu()
    return lost


def _each(error_metric: torch.Tensor | None, num_groups: int) -> Iterable[torch.Tensor | None]:
    return [None] * num_groups if error_metric is None else error_metric


def gram_bytes(plan: Plan) -> int:
    """What :func:`grams_of` works on: rows in float64, what they are multiplied to, and the matrix of a group."""
    full, hidden = max(plan.full_ranks), plan.geometry.hidden_size
    return plan.workers * FLOAT64 * (2 * min(BLOCK_ROWS, full) * hidden + full**2)


def factor_bytes(plan: Plan, side: Grouping, rank: int) -> int:
    """Both factors of one group."""
    return FLOAT64 * rank * (plan.geometry.hidden_size + side.full_rank)


def decomposition_bytes(plan: Plan, side: Grouping, rank: int) -> int:
    """What :func:`decompose` works on beyond the factors of all groups.

    For every group at work its matrix and twice its size for LAPACK; with an error metric also roots of ``A`` and
    products with them.
    """
    matrices = 6 if plan.needs_error_metric else 3
    at_work = matrices * FLOAT64 * side.full_rank**2 + factor_bytes(plan, side, rank)
    if plan.needs_whitening:
        return plan.workers * at_work
    return max(plan.workers * at_work, gram_bytes(plan)) + FLOAT64 * side.num_groups * side.full_rank**2
