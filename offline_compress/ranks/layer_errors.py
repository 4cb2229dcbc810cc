"""The errors of one layer's attention with every way of storing its keys and values, on its calibration samples.

They are predicted (``predicted_errors.py``), or all tried in attention, which takes far longer and is what
predictions are held to; and those of a few ways that were chosen are tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from offline_compress.calibration.layer_probes import heads_bytes, probabilities_bytes
from offline_compress.calibration.probe import AttentionProbe
from offline_compress.calibration.statistics import kept_tokens
from offline_compress.factors.all_groups import decomposition_bytes, factor_bytes
from offline_compress.factors.layer_views import LayerView
from offline_compress.factors.refit import Read, Refit, read_keys, read_values
from offline_compress.factors.refit import peak_bytes as refit_bytes
from offline_compress.grouping import Grouping
from offline_compress.model.access import KEY, VALUE, dense_bytes
from offline_compress.plan import Plan
from offline_compress.ranks.predicted_errors import Rounding, rounding_costs, roundings
from offline_compress.ranks.storage_errors import Projected, Storage, plain_errors, storage_errors, unrounded
from offline_compress.ranks.storage_grid import Grid, candidate_ranks
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import TierFractions

COMPARED_SAMPLES = 2  # on which all ways of storing are tried
FLOAT32, FLOAT64 = 4, 8
Way = tuple[int, TierFractions]  # of storing keys or values: rank and tiers
Error = Callable[[torch.Tensor], float]  # of keys or values that are not the exact ones


@dataclass(frozen=True)
class LayerErrors:
    """``[ranks, tiers]`` for K and for V, and ``[PLAIN_BITS]`` for both in plain bits; means over samples."""

    tables: KV[torch.Tensor]
    plain: torch.Tensor

    @classmethod
    def of(cls, lists: dict[str, Any]) -> "LayerErrors":
        """From :meth:`as_lists`."""
        key, value, plain = (torch.tensor(found, dtype=torch.float64) for found in (*lists["tables"], lists["plain"]))
        return cls(KV(key, value), plain)

    def as_lists(self) -> dict[str, Any]:
        return {"tables": [table.tolist() for table in self.tables], "plain": self.plain.tolist()}


@dataclass(frozen=True)
class Side:
    """Keys or values of the compared samples, with their factors at some ranks, and what errors are measured by."""

    projected: Sequence[Projected]
    errors: Sequence[Error]

    def tried(self, storages: Sequence[Sequence[Storage]]) -> torch.Tensor:
        """``[ranks, tiers]``, each tried in attention, mean over samples."""
        pairs = zip(self.projected, self.errors, strict=True)
        return torch.stack([storage_errors(projected, error, storages) for projected, error in pairs]).mean(0)

    def predicted(self, storages: Sequence[Sequence[Storage]], rounding: Rounding) -> torch.Tensor:
        """The same, predicted, with roundings of the first sample."""
        cut = self.tried([[unrounded(row[0].form.rank)] for row in storages])
        return cut + rounding_costs(self.projected[0], rounding, storages)


@torch.no_grad()
def sides_of(plan: Plan, grids: KV[Grid], view: LayerView, ranks: KV[Sequence[int]]) -> KV[Side]:
    """Of the layer of ``view``, with factors that are fitted at ``ranks``. Raises ValueError without samples."""
    if view.probes is None:
        raise ValueError("errors are measured on samples, and none were kept")
    samples, finished = list(view.probes.first(COMPARED_SAMPLES)), view.probes.finished(KEY)
    refitted = view.probes if plan.refits else ()

    def side(grid: Grid, name: str, read: Read, errors: Sequence[Error], own: Sequence[int]) -> Side:
        weight, full = view.weight(name), grid.groups.full_rank
        objective = view.objectives.key if name == KEY else view.objectives.value
        factors = objective.factors(weight, full)
        exact = Refit(read, refitted).at_ranks(factors, weight, [rank for rank in own if rank < full])
        fitted = {rank: up.float() for rank, up in exact.items()}  # once for all samples
        split = (-1, full // grid.groups.size)
        wholes = [(rows @ weight.float().T).unflatten(-1, split).transpose(0, 1) for _, rows in samples]
        projected = [
            Projected.of(factors, rows, whole, fitted) for (_, rows), whole in zip(samples, wholes, strict=True)
        ]
        return Side(projected, errors)

    key_errors = [partial(_key_error, probe, finished) for probe, _ in samples]
    value_errors = [probe.value_error for probe, _ in samples]
    key = side(grids.key, KEY, read_keys, key_errors, ranks.key)
    return KV(key, side(grids.value, VALUE, read_values, value_errors, ranks.value))


@torch.no_grad()
def layer_errors(plan: Plan, grids: KV[Grid], view: LayerView) -> LayerErrors:
    """Of every way of storing the layer of ``view``. Raises ValueError where no samples were kept."""
    sides, storages = sides_of(plan, grids, view, grids.map(lambda grid: grid.ranks)), grids.map(Grid.storages)
    probes = [probe for probe, _ in view.probes.first(COMPARED_SAMPLES)] if view.probes else []
    if plan.options.exhaustive:
        tables = KV(sides.key.tried(storages.key), sides.value.tried(storages.value))
    else:
        rounding = roundings(view, probes[0], plan.groupings)
        key = sides.key.predicted(storages.key, rounding.key)
        tables = KV(key, sides.value.predicted(storages.value, rounding.value))
    return LayerErrors(tables, torch.stack([plain_errors(probe) for probe in probes]).mean(0))


@torch.no_grad()
def tried_errors(plan: Plan, grids: KV[Grid], view: LayerView, ways: KV[Sequence[Way]]) -> KV[list[float]]:
    """Of a few ways of storing keys, and of storing values, of the layer of ``view``; tried, in their order."""
    sides = sides_of(plan, grids, view, ways.map(lambda own: sorted({rank for rank, _ in own})))
    return KV(
        *(
            [side.tried([[grid.storage(*way)]]).item() for way in own]
            for side, grid, own in zip(sides, grids, ways, strict=True)
        )
    )


def _key_error(probe: AttentionProbe, finished: Callable[[torch.Tensor], torch.Tensor], keys: torch.Tensor) -> float:
    """Keys are cached without their bias, before their norm."""
    return probe.key_error(finished(keys))


def peak_bytes(plan: Plan, samples: int) -> int:
    """Attention of the compared samples, and what one side needs beside it."""
    compared, (key, value) = min(samples, COMPARED_SAMPLES), plan.groupings
    probes = compared * (2 * heads_bytes(plan) + probabilities_bytes(plan))
    return probes + max(_side_bytes(plan, key), _kept_bytes(plan, key, compared) + _side_bytes(plan, value))


def _kept_bytes(plan: Plan, side: Grouping, samples: int) -> int:
    """Of the keys, while values are looked into: numbers of the samples, and what rebuilds from every rank."""
    full, groups = side.full_rank, side.num_groups
    fitted = sum(candidate_ranks(full)[:-1]) if plan.refits else 0
    return FLOAT32 * groups * full * (2 * samples * kept_tokens(plan) + full + fitted)


def _side_bytes(plan: Plan, side: Grouping) -> int:
    """Factors of full rank, those fitted for every rank, and one candidate's attention."""
    tokens, full, groups = kept_tokens(plan), side.full_rank, side.num_groups
    ranks = candidate_ranks(full)
    refitting = refit_bytes(plan, side, ranks) if plan.refits else 0
    fitted = (FLOAT64 + FLOAT32) * groups * full * sum(ranks[:-1]) if plan.refits else 0
    factors = groups * factor_bytes(plan, side, full)
    candidate = 2 * probabilities_bytes(plan) + 3 * FLOAT32 * tokens * groups * full
    dense = dense_bytes(plan.source)
    decomposing = dense + factors + decomposition_bytes(plan, side, full)
    return max(decomposing, refitting, dense + factors * 3 // 2 + fitted + candidate)
