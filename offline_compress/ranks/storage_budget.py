"""Ranks, bits and tiers for a number of bytes per token: the choice of least predicted error, a pure function.

Every projection of every layer has a table of errors over ranks and tiers (``storage_errors.py``); errors add up. Tiers
are one choice for all K and one for all V, ranks are chosen per layer. For given tiers the ranks follow from a greedy
walk: of all projections, the one is widened next whose error falls most per byte. On the convex hull of each
projection's curve of errors over bytes that is the optimum for the bytes it ends at (Fox, 1966); what is left over goes
to single steps that still fit.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import TierFractions


@dataclass(frozen=True)
class Curve:
    """What one projection's ranks cost, in ascending order of ranks: bytes per token, ascending, and errors."""

    ranks: tuple[int, ...]
    bytes: tuple[int, ...]
    errors: tuple[float, ...]

    def hull(self) -> list[int]:
        """Indices of the lower convex hull from the narrowest rank on: each step's gain per byte below the last's."""
        hull: list[int] = []
        for i in range(len(self.ranks)):
            while hull and self.errors[hull[-1]] >= self.errors[i] and self._bends_up(hull, i):
                hull.pop()
            if not hull or self.errors[i] < self.errors[hull[-1]]:
                hull.append(i)
        return hull

    def _bends_up(self, hull: list[int], new: int) -> bool:
        """Whether the last index of the hull lies above the line from the one before it to ``new``."""
        return len(hull) > 1 and self.gain(hull[-2], new) >= self.gain(hull[-2], hull[-1])

    def gain(self, start: int, end: int) -> float:
        """Error saved per byte from index ``start`` to ``end``."""
        return (self.errors[start] - self.errors[end]) / (self.bytes[end] - self.bytes[start])


@dataclass(frozen=True)
class Choice:
    """One way of storing the whole cache."""

    tiers: KV[TierFractions]
    ranks: tuple[KV[int], ...]  # of every layer
    bytes_per_token: int
    predicted_error: float

    def report(self) -> dict[str, Any]:
        """For ``palu_report.json``, as JSON will read it back."""
        return {
            "tiers_k": [list(tier) for tier in self.tiers.key],
            "tiers_v": [list(tier) for tier in self.tiers.value],
            "rank_k": [layer.key for layer in self.ranks],
            "rank_v": [layer.value for layer in self.ranks],
            "bytes_per_token": self.bytes_per_token,
            "predicted_error": self.predicted_error,
        }


def widen(curves: Sequence[Curve], budget: int) -> list[int] | None:
    """The index of every curve's rank for at most ``budget`` bytes in all; None if the narrowest ranks need more."""
    chosen = [0] * len(curves)
    left = budget - sum(curve.bytes[0] for curve in curves)
    if left < 0:
        return None
    steps = [
        (-curve.gain(start, end), number, end)
        for number, curve in enumerate(curves)
        for start, end in itertools.pairwise(curve.hull())
    ]
    for _, number, end in sorted(steps):
        curve = curves[number]
        cost = curve.bytes[end] - curve.bytes[chosen[number]]
        if end > chosen[number] and cost <= left:
            chosen[number], left = end, left - cost
    while (step := _best_step(curves, chosen, left)) is not None:
        number, end = step
        left -= curves[number].bytes[end] - curves[number].bytes[chosen[number]]
        chosen[number] = end
    return chosen


def _best_step(curves: Sequence[Curve], chosen: Sequence[int], left: int) -> tuple[int, int] | None:
    """Of all wider ranks that fit into ``left`` bytes the one that saves most error per byte: its curve and index."""
    steps = [
        (-curve.gain(start, end), number, end)
        for number, (curve, start) in enumerate(zip(curves, chosen, strict=True))
        for end in range(start + 1, len(curve.ranks))
        if curve.bytes[end] - curve.bytes[start] <= left and curve.errors[end] < curve.errors[start]
    ]
    return min(steps)[1:] if steps else None


def choices(curves: KV[dict[TierFractions, Sequence[Curve]]], budget: int) -> list[Choice]:
    """The best choice for each pair of tiers that fits into ``budget`` bytes per token, best of all first."""
    found = []
    for (tiers_k, of_k), (tiers_v, of_v) in itertools.product(curves.key.items(), curves.value.items()):
        both = [*of_k, *of_v]
        chosen = widen(both, budget)
        if chosen is None:
            continue
        ranks = [curve.ranks[i] for curve, i in zip(both, chosen, strict=True)]
        size = sum(curve.bytes[i] for curve, i in zip(both, chosen, strict=True))
        error = sum(curve.errors[i] for curve, i in zip(both, chosen, strict=True))
        of_layers = zip(ranks[: len(of_k)], ranks[len(of_k) :], strict=True)
        found.append(Choice(KV(tiers_k, tiers_v), tuple(KV(*layer) for layer in of_layers), size, error))
    return sorted(found, key=lambda choice: (choice.predicted_error, choice.bytes_per_token))
