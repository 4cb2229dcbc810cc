"""The errors of one layer's attention with every way of storing its keys and values, on its calibration samples."""

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
from offline_compress.factors.objective import Objective
from offline_compress.factors.refit import Read, Refit, read_keys, read_values
from offline_compress.factors.refit import peak_bytes as refit_bytes
from offline_compress.grouping import Grouping
from offline_compress.model.access import KEY, VALUE, dense_bytes
from offline_compress.plan import Plan
from offline_compress.ranks.storage_errors import Projected, plain_errors, storage_errors
from offline_compress.ranks.storage_grid import Grid, candidate_ranks
from palu_vllm.format.kv import KV

COMPARED_SAMPLES = 2  # on which all ways of storing are tried
FLOAT32, FLOAT64 = 4, 8
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


@torch.no_grad()
def layer_errors(plan: Plan, grids: KV[Grid], view: LayerView) -> LayerErrors:
    """Of the layer of ``view``. Raises ValueError where no samples were kept."""
    if view.probes is None:
        raise ValueError("errors are measured on samples, and none were kept")
    samples, finished = list(view.probes.first(COMPARED_SAMPLES)), view.probes.finished(KEY)
    refitted = view.probes if plan.refits else ()

    def table(grid: Grid, name: str, objective: Objective, read: Read, errors: Sequence[Error]) -> torch.Tensor:
        inputs = [rows for _, rows in samples]
        compared = list(zip(inputs, errors, strict=True))
        return _table(grid, view.weight(name), objective, Refit(read, refitted), compared)

    key_errors = [partial(_key_error, probe, finished) for probe, _ in samples]
    value_errors = [probe.value_error for probe, _ in samples]
    key = table(grids.key, KEY, view.objectives.key, read_keys, key_errors)
    value = table(grids.value, VALUE, view.objectives.value, read_values, value_errors)
    return LayerErrors(KV(key, value), torch.stack([plain_errors(probe) for probe, _ in samples]).mean(0))


def _table(
    grid: Grid,
    weight: torch.Tensor,
    objective: Objective,
    refit: Refit,
    samples: Sequence[tuple[torch.Tensor, Error]],
) -> torch.Tensor:
    """``[ranks, tiers]`` of one projection, mean over samples of inputs and what their errors are measured by."""
    factors = objective.factors(weight, grid.groups.full_rank)
    fitted, storages = refit.at_ranks(factors, weight, grid.ranks[:-1]), grid.storages()
    head_dim = grid.groups.full_rank // grid.groups.size

    def of_sample(inputs: torch.Tensor, error: Error) -> torch.Tensor:
        whole = (inputs @ weight.float().T).unflatten(-1, (-1, head_dim)).transpose(0, 1)
        return storage_errors(Projected.of(factors, inputs, whole, fitted), error, storages)

    return torch.stack([of_sample(*sample) for sample in samples]).mean(0)


def _key_error(probe: AttentionProbe, finished: Callable[[torch.Tensor], torch.Tensor], keys: torch.Tensor) -> float:
    """Keys are cached without their bias, before their norm."""
    return probe.key_error(finished(keys))


def peak_bytes(plan: Plan, samples: int) -> int:
    """Attention of the compared samples, and what one side needs beside it."""
    probes = min(samples, COMPARED_SAMPLES) * (2 * heads_bytes(plan) + probabilities_bytes(plan))
    return probes + max(_side_bytes(plan, side) for side in plan.groupings)


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
