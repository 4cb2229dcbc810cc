"""How many ranks each projection keeps: pure functions on numbers.

A matrix is one ``k_proj`` or ``v_proj``; all groups of a matrix get equal rank, because the checkpoint has one rank per
layer for K and one for V. Ranks are multiples of a tile, at least one tile, at most full rank. What is shared out is
the cache: a matrix pays a tile of ranks in each of its groups, and all matrices have equally many numbers per token at
full rank. These are counted in units of the smallest step that a matrix can make, and their sum is the nearest to
``ratio`` times that of the full ranks: nothing drifts by rounding. (Only where all matrices of the smallest step are
full can less than a step of the others be left over.)

``uniform``         every matrix the same share of its full rank.
``fisher_uniform``  in proportion to the mean Fisher information of the whole matrix (the paper's default).
``fisher``          in proportion to the mean Fisher information of each group, with floor and cap applied per group;
                    the matrix then gets the sum over its groups. It differs from ``fisher_uniform`` where single
                    groups reach the floor or the cap. (The reference keeps a rank per group; this format has none.)
``lorc``            in proportion to the weights of ``condition_numbers.py``, one for K and V of a layer.
"""

import math
from collections.abc import Callable, Sequence

from palu_vllm.format.shape import rank_step


def units_and_steps(full_ranks: Sequence[int]) -> tuple[int, list[int]]:
    """The cache of a whole matrix in units, and how many of them a tile of ranks of every matrix takes."""
    tiles = [full // rank_step(full) for full in full_ranks]
    units = math.lcm(*tiles)
    return units, [units // count for count in tiles]


def proportional_shares(
    weights: Sequence[float], lowest: Sequence[float], highest: Sequence[float], total: float
) -> list[float]:
    """``clip(scale * weight, lowest, highest)`` with the scale for which the sum is ``total``.

    Needs ``sum(lowest) <= total <= sum(highest)``. Weights of zero count as a billionth of the largest.
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


def largest_remainder(shares: Sequence[float], steps: Sequence[int], highest: int, total: int) -> list[int]:
    """Multiples of ``steps`` near ``shares`` whose sum is ``total``; what is left after flooring goes to the largest
    remainders whose step still fits.

    Equal remainders are served by larger share, then by position.
    """
    kept = [min(math.floor(share / step + 1e-9) * step, highest) for share, step in zip(shares, steps, strict=True)]
    while True:
        left = total - sum(kept)
        fitting = [i for i, step in enumerate(steps) if step <= left and kept[i] + step <= highest]
        if not fitting:
            return kept
        chosen = min(fitting, key=lambda i: (kept[i] - shares[i], -shares[i], i))
        kept[chosen] += steps[chosen]


def budget(full_ranks: Sequence[int], ratio: float) -> int:
    """The units that all matrices may keep: nearest to the ratio, at least one tile for each matrix."""
    units, steps = units_and_steps(full_ranks)
    return max(sum(steps), math.floor(ratio * len(steps) * units + 0.5))


def keeps_all(full_ranks: Sequence[int], ratio: float) -> bool:
    """Whether every matrix keeps its full rank."""
    return budget(full_ranks, ratio) == len(full_ranks) * units_and_steps(full_ranks)[0]


Importance = Sequence[Sequence[float]]  # of the groups of every matrix


def _equal(importance: Importance, steps: Sequence[int], units: int, total: int) -> list[float]:
    return proportional_shares([1.0] * len(steps), steps, [units] * len(steps), total)


def _by_matrix(importance: Importance, steps: Sequence[int], units: int, total: int) -> list[float]:
    means = [math.fsum(groups) / len(groups) for groups in importance]
    return proportional_shares(means, steps, [units] * len(steps), total)


def _by_group(importance: Importance, steps: Sequence[int], units: int, total: int) -> list[float]:
    sizes = [len(groups) for groups in importance]
    weights = [value / len(groups) for groups in importance for value in groups]
    lowest = [step / size for step, size in zip(steps, sizes, strict=True) for _ in range(size)]
    flat = iter(proportional_shares(weights, lowest, [units / size for size in sizes for _ in range(size)], total))
    return [math.fsum(next(flat) for _ in range(size)) for size in sizes]


SHARES: dict[str, Callable[[Importance, Sequence[int], int, int], list[float]]] = {
    "uniform": _equal,
    "fisher_uniform": _by_matrix,
    "fisher": _by_group,
    "lorc": _by_matrix,
}


def allocate_ranks(search: str, importance: Importance, full_ranks: Sequence[int], ratio: float) -> list[int]:
    """The rank of every matrix, from ``importance[matrix][group]``. Raises ValueError for importance not finite."""
    if not all(math.isfinite(value) and value >= 0 for groups in importance for value in groups):
        raise ValueError("the importance of a projection is negative or not finite")
    units, steps = units_and_steps(full_ranks)
    total = budget(full_ranks, ratio)
    kept = largest_remainder(SHARES[search](importance, steps, units, total), steps, units, total)
    return [full * share // units for full, share in zip(full_ranks, kept, strict=True)]
