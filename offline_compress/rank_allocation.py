"""How many ranks each projection keeps: pure functions on numbers.

A matrix is one ``k_proj`` or ``v_proj``; all groups of a matrix get equal rank, because the checkpoint has one rank per
layer for K and one for V. Ranks are multiples of a tile, at least one tile, at most full rank, and their sum is the
nearest multiple of the tile to ``ratio`` times the sum of the full ranks: nothing drifts by rounding.

``uniform``         every matrix the same.
``fisher_uniform``  in proportion to the mean Fisher information of the whole matrix (the paper's default).
``fisher``          in proportion to the mean Fisher information of each group, with floor and cap applied per group;
                    the matrix then gets the mean over its groups. It differs from ``fisher_uniform`` where single
                    groups reach the floor or the cap. (The reference keeps a rank per group; this format has none.)
"""

import math
from collections.abc import Callable, Sequence

RANK_TILE = 16


def rank_tile(full_rank: int) -> int:
    """16, or the largest power of two below it that divides the full rank (tiny models)."""
    return math.gcd(RANK_TILE, full_rank)


def proportional_shares(weights: Sequence[float], lowest: float, highest: float, total: float) -> list[float]:
    """``clip(scale * weight, lowest, highest)`` with the scale for which the sum is ``total``.

    Needs ``lowest * n <= total <= highest * n``. Weights of zero count as a billionth of the largest.
    """
    top = max(weights)
    floor = [max(weight / top, 1e-9) if top else 1.0 for weight in weights]

    def shares(scale: float) -> list[float]:
        return [min(max(scale * weight, lowest), highest) for weight in floor]

    low, high = 0.0, highest * 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(shares(middle)) < total else (low, middle)
    return shares(high)


def largest_remainder(shares: Sequence[float], highest: int, total: int) -> list[int]:
    """Whole numbers near ``shares`` whose sum is ``total``; what is left after flooring goes to the largest remainders.

    Equal remainders are served by larger share, then by position.
    """
    whole = [min(math.floor(share + 1e-9), highest) for share in shares]
    while sum(whole) < total:
        open_entries = [i for i, units in enumerate(whole) if units < highest]
        order = sorted(open_entries, key=lambda i: (whole[i] - shares[i], -shares[i], i))
        for i in order[: total - sum(whole)]:
            whole[i] += 1
    return whole


def budget(num_matrices: int, full_rank: int, ratio: float) -> int:
    """The sum of all ranks, in tiles: nearest to the ratio, at least one tile for each matrix."""
    units = full_rank // rank_tile(full_rank)
    return max(num_matrices, math.floor(ratio * num_matrices * units + 0.5))


def _equal(importance: Sequence[Sequence[float]], units: int, total: int) -> list[float]:
    return proportional_shares([1.0] * len(importance), 1, units, total)


def _by_matrix(importance: Sequence[Sequence[float]], units: int, total: int) -> list[float]:
    means = [math.fsum(groups) / len(groups) for groups in importance]
    return proportional_shares(means, 1, units, total)


def _by_group(importance: Sequence[Sequence[float]], units: int, total: int) -> list[float]:
    num_groups = len(importance[0])
    flat = proportional_shares([f for groups in importance for f in groups], 1, units, total * num_groups)
    return [math.fsum(flat[i : i + num_groups]) / num_groups for i in range(0, len(flat), num_groups)]


SHARES: dict[str, Callable[[Sequence[Sequence[float]], int, int], list[float]]] = {
    "uniform": _equal,
    "fisher_uniform": _by_matrix,
    "fisher": _by_group,
}


def allocate_ranks(search: str, importance: Sequence[Sequence[float]], full_rank: int, ratio: float) -> list[int]:
    """The rank of every matrix, from ``importance[matrix][group]``. Raises ValueError for importance not finite."""
    if not all(math.isfinite(value) and value >= 0 for groups in importance for value in groups):
        raise ValueError("the importance of a projection is negative or not finite")
    tile = rank_tile(full_rank)
    units, total = full_rank // tile, budget(len(importance), full_rank, ratio)
    return [tile * n for n in largest_remainder(SHARES[search](importance, units, total), units, total)]
