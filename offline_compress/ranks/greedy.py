"""Ranks that fall step by step: the algorithm of MatryoshkaKV (Lin et al., 2024, arXiv 2410.14731).

All projections begin with full rank. In every step the one is lowered by which the model's next-token distribution on
calibration samples moves least away from the dense model's, in nats per number of the cache that it gives back; until
the budget is met. A step is an eighth of the full rank, in multiples of the smallest; of the last one as much is
taken as the budget asks for, so that fewer ranks are always a part of more.

The first step measures all projections. Later ones take what a projection would have added when it was last measured
as the least that it adds now, and measure only those that could be the best (Minoux, 1978): the same choice wherever
losses do not shrink while others grow, at a fraction of the passes. The paper chooses per head, by the change of the
last hidden state; here all groups of a projection share a rank, and the loss is the divergence that other choices of
this compressor are measured by.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, TypedDict

from offline_compress.rank_steps import budget, units_and_costs
from offline_compress.ranks.allocation import largest_remainder
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent, ignore
from palu_vllm.format.shape import rank_step

STEPS_PER_RANK = 8


class Step(TypedDict):
    """``matrix``, counted over K and V of one layer after the other, may be lowered to ``rank``.

    The model then is at ``loss``.

    ``added`` is what the next step of every matrix adds to the loss per number of the cache, as it was last measured;
    None where it has not been since its own rank changed.
    """

    matrix: int
    rank: int
    loss: float
    added: list[float | None]


class LowerableModel(Protocol):
    """A model whose projections, K and V of one layer after the other, have ranks that only fall."""

    def loss(self, matrix: int, rank: int) -> float:
        """With one projection lower than it is: how far from the dense model."""

    def lower(self, matrix: int, rank: int) -> None:
        """From now on the projection has this rank."""


def lower_rank(rank: int, full: int) -> int:
    """The rank behind a step down, at least the smallest."""
    least = rank_step(full)
    step = max(least, full // STEPS_PER_RANK // least * least)
    return max(rank - step, least)


def best_step(
    model: LowerableModel,
    ranks: Sequence[int],
    full_ranks: Sequence[int],
    loss: float,
    added: Sequence[float | None],
) -> Step:
    """The step that adds least to the model's ``loss`` per number of the cache, the first of equals; ``added`` as in
    :class:`Step`.
    """
    lower = [lower_rank(rank, full) for rank, full in zip(ranks, full_ranks, strict=True)]
    matrices = [matrix for matrix, rank in enumerate(ranks) if lower[matrix] < rank]
    known = {matrix: cost for matrix, cost in enumerate(added) if cost is not None}
    losses: dict[int, float] = {}

    def measure(matrix: int) -> None:
        losses[matrix] = model.loss(matrix, lower[matrix])
        share = (ranks[matrix] - lower[matrix]) / full_ranks[matrix]
        known[matrix] = (losses[matrix] - loss) / share

    for matrix in matrices:
        if matrix not in known:
            measure(matrix)
    while (best := min(matrices, key=known.__getitem__)) not in losses:
        measure(best)
    del known[best]
    return Step(matrix=best, rank=lower[best], loss=losses[best], added=[known.get(each) for each in range(len(ranks))])


def greedy_ranks(
    model: LowerableModel, full_ranks: Sequence[int], ratio: float, journal: Journal, on_event: OnEvent = ignore
) -> tuple[list[int], list[Step]]:
    """The rank of every matrix, as much cache in all as the ratio says; and the steps, the last taken in part.

    Goes on behind the last step in ``journal``.
    """
    units, costs = units_and_costs(full_ranks)
    allowed = budget(full_ranks, ratio)
    ranks = list(full_ranks)
    steps: list[Step] = []
    excess = units * len(ranks) - allowed
    expected = math.ceil(excess * STEPS_PER_RANK / units)  # of full size
    while excess > 0:
        loss, added = (steps[-1]["loss"], steps[-1]["added"]) if steps else (0.0, [None] * len(ranks))
        best = partial(best_step, model, ranks, full_ranks, loss, added)
        step: Step = journal.remembered(f"step-{len(steps):05d}", best)
        matrix = step["matrix"]
        least, cost = rank_step(full_ranks[matrix]), costs[matrix]
        taken = min((ranks[matrix] - step["rank"]) // least, math.ceil(excess / cost))
        ranks[matrix], excess = ranks[matrix] - taken * least, excess - taken * cost
        on_event({"event": "step", "number": len(steps), "of": expected, "loss": step["loss"]})
        steps.append(step)
        if excess > 0:
            model.lower(matrix, ranks[matrix])
    kept = [rank * units // full for rank, full in zip(ranks, full_ranks, strict=True)]
    exact = largest_remainder(kept, costs, units, allowed)  # gives back what a larger step took too much
    return [full * share // units for full, share in zip(full_ranks, exact, strict=True)], steps


def report(steps: Sequence[Step]) -> dict[str, Any]:
    """For ``palu_report.json``: which projection was lowered to which rank in which order, and nats per token then."""
    return {"steps": [[step["matrix"], step["rank"], step["loss"]] for step in steps]}
