"""How many ranks each projection keeps by its importance: pure functions on numbers, in the steps of ``rank_steps.py``.

``by_matrix``  in proportion to the mean importance of a whole matrix.
``by_group``   in proportion to that of each group, with floor and cap applied per group; the matrix then gets the sum
               over its groups. It differs from ``by_matrix`` where single groups reach the floor or the cap.
"""

import math
from collections.abc import Callable, Sequence

from offline_compress.plan import Plan
from offline_compress.rank_steps import budget, units_and_costs
from palu_vllm.format.kv import KV, flattened, paired

Importance = Sequence[Sequence[float]]  # of the groups of every matrix
# units of every matrix from importance, costs of a step, units of a whole matrix and units that all may keep
Sharing = Callable[[Importance, Sequence[int], int, int], list[float]]


def proportional_shares(
    weights: Sequence[float], lowest: Sequence[float], highest: Sequence[float], total: float
) -> list[float]:
    """``clip(scale * weight, lowest, highest)`` with the scale for which the sum is ``total``.

    Needs ``sum(lowest) <= total <= sum(highest)``. Weights below a billionth of the largest count as that.
    """
    top = max(weights)
    floor = [max(weight / top, 1e-9) if top else 1.0 for weight in weights]

    def shares(scale: float) -> list[float]:
        return [min(max(scale * w, low), high) for w, low, high in zip(floor, lowest, highest, strict=True)]

    low, high = 0.0, max(highest) * 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(shares(middle)) < total else (low, middle)
    return shares(high)


def largest_remainder(shares: Sequence[float], costs: Sequence[int], highest: int, total: int) -> list[int]:
    """Multiples of ``costs`` near ``shares`` whose sum is ``total``; what is left after flooring goes to the largest
    remainders whose cost still fits.

    Equal remainders are served by larger share, then by position.
    """
    kept = [min(math.floor(share / cost + 1e-9) * cost, highest) for share, cost in zip(shares, costs, strict=True)]
    while True:
        left = total - sum(kept)
        fitting = [i for i, cost in enumerate(costs) if cost <= left and kept[i] + cost <= highest]
        if not fitting:
            return kept
        chosen = min(fitting, key=lambda i: (kept[i] - shares[i], -shares[i], i))
        kept[chosen] += costs[chosen]


def by_matrix(importance: Importance, costs: Sequence[int], units: int, total: int) -> list[float]:
    means = [math.fsum(groups) / len(groups) for groups in importance]
    return proportional_shares(means, costs, [units] * len(costs), total)


def by_group(importance: Importance, costs: Sequence[int], units: int, total: int) -> list[float]:
    sizes = [len(groups) for groups in importance]
    weights = [value / len(groups) for groups in importance for value in groups]
    lowest = [cost / size for cost, size in zip(costs, sizes, strict=True) for _ in range(size)]
    flat = iter(proportional_shares(weights, lowest, [units / size for size in sizes for _ in range(size)], total))
    return [math.fsum(next(flat) for _ in range(size)) for size in sizes]


def allocate_ranks(sharing: Sharing, importance: Importance, full_ranks: Sequence[int], ratio: float) -> list[int]:
    """The rank of every matrix, from ``importance[matrix][group]``. Raises ValueError for importance not finite."""
    if not all(math.isfinite(value) and value >= 0 for groups in importance for value in groups):
        raise ValueError("the importance of a projection is negative or not finite")
    units, costs = units_and_costs(full_ranks)
    total = budget(full_ranks, ratio)
    kept = largest_remainder(sharing(importance, costs, units, total), costs, units, total)
    return [full * share // units for full, share in zip(full_ranks, kept, strict=True)]


def ranks_by_importance(plan: Plan, importance: Sequence[KV[list[float]]], sharing: Sharing) -> list[KV[int]]:
    """The ranks of every layer from the importance of the groups of its K and V, at the plan's ratio."""
    of_caching = flattened(plan.of_caching(importance))
    full_ranks = flattened([plan.full_ranks] * len(plan.caching_layers))
    return plan.for_all(paired(allocate_ranks(sharing, of_caching, full_ranks, plan.options.rank_ratio)))


def uniform_ranks(plan: Plan) -> list[KV[int]]:
    """Every projection the same fraction of its full rank."""
    return ranks_by_importance(plan, [KV([1.0], [1.0])] * plan.num_layers, by_matrix)
