"""The steps that ranks come in, and the part of the cache that a ratio allows: pure functions on numbers.

A matrix is one ``k_proj`` or ``v_proj``; all groups of a matrix get equal rank, because the checkpoint has one rank per
layer for K and one for V. Ranks are multiples of a step, at least one step, at most full rank. What is shared out is
the cache: a matrix pays a step of ranks in each of its groups, and all matrices have equally many numbers per token at
full rank. These are counted in units of the smallest step that a matrix can make, and their sum is the nearest to
``ratio`` times that of the full ranks: nothing drifts by rounding. (Only where all matrices of the smallest step are
full can less than a step of the others be left over.)
"""

import math
from collections.abc import Sequence

from palu_vllm.format.shape import rank_step


def units_and_costs(full_ranks: Sequence[int]) -> tuple[int, list[int]]:
    """The cache of a whole matrix in units, and how many of them a step of ranks of every matrix costs."""
    steps = [full // rank_step(full) for full in full_ranks]
    units = math.lcm(*steps)
    return units, [units // count for count in steps]


def budget(full_ranks: Sequence[int], ratio: float) -> int:
    """The units that all matrices may keep: nearest to the ratio, at least one step for each matrix."""
    units, costs = units_and_costs(full_ranks)
    return max(sum(costs), math.floor(ratio * len(costs) * units + 0.5))


def keeps_all(full_ranks: Sequence[int], ratio: float) -> bool:
    """Whether every matrix keeps its full rank."""
    return budget(full_ranks, ratio) == len(full_ranks) * units_and_costs(full_ranks)[0]
