"""How to store a cache in a number of bytes per token: tries every way on calibration data, then chooses.

One pass over the layers gives the errors of all ranks and tiers (``layer_errors.py``), from which ``budget.py``
chooses. Beside it, in the same measure, stands what caches would cost that only quantize.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from offline_compress.calibration.activations import remove_inputs
from offline_compress.calibration.statistics import layer_statistics
from offline_compress.model.access import LayerRunner
from offline_compress.plan import Plan
from offline_compress.ranks.budget import Choice, Curve, choices
from offline_compress.ranks.layer_errors import PROBED_SAMPLES, LayerErrors, layer_errors
from offline_compress.ranks.storage_errors import PLAIN_BITS
from offline_compress.ranks.storage_grid import Grid, SideGrid
from offline_compress.run.errors import CompressionError
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from offline_compress.run.stopwatch import lap
from palu_vllm.format.latent_format import HEADER_BYTES, TierFractions

SHOWN = 5  # of the choices that were considered


@dataclass(frozen=True)
class StorageChoice:
    """The best choice of each pair of tiers, best first, and what plain bits per token and head would cost."""

    budget: int
    considered: tuple[Choice, ...]
    plain: dict[str, dict[str, float]]

    @property
    def best(self) -> Choice:
        return self.considered[0]

    def report(self) -> dict[str, Any]:
        """For ``palu_report.json``."""
        return {
            "bytes_per_token": self.budget,
            "predicted_error": self.best.predicted_error,
            "predicted_error_is": "squared change of what attention adds over the residual stream, summed over layers",
            "considered": [_as_lists(asdict(choice)) for choice in self.considered[:SHOWN]],
            "plain_bits_per_token_and_head": self.plain,
        }


def choose_storage(plan: Plan, tokens: torch.Tensor, journal: Journal, on_event: OnEvent) -> StorageChoice:
    """The least predicted error within the plan's budget. Raises CompressionError where nothing fits into it.

    ``tokens [samples, seqlen]`` are calibration data. The pass goes on behind the last layer in ``journal``.
    """
    grid = Grid.of(plan)
    if grid.smallest_bytes > plan.budget_bytes:
        raise CompressionError(
            f"the budget is {plan.budget_bytes} bytes per token, the least that these options allow is "
            f"{grid.smallest_bytes}; give a smaller compression, or fewer bits."
        )
    layers = _errors(plan, grid, tokens, journal, on_event)
    caching = [layers[layer] for layer in plan.caching_layers]
    found = choices(
        _curves(grid.key, [layer.key for layer in caching]),
        _curves(grid.value, [layer.value for layer in caching]),
        plan.budget_bytes,
    )
    return StorageChoice(plan.budget_bytes, tuple(_for_all(plan, choice) for choice in found), _plain(plan, layers))


def _for_all(plan: Plan, choice: Choice) -> Choice:
    """The same for all layers, of those with a cache."""
    rank_k, rank_v = plan.for_all([rank for pair in zip(choice.rank_k, choice.rank_v, strict=True) for rank in pair])
    return replace(choice, rank_k=tuple(rank_k), rank_v=tuple(rank_v))


def _errors(plan: Plan, grid: Grid, tokens: torch.Tensor, journal: Journal, on_event: OnEvent) -> list[LayerErrors]:
    runner = LayerRunner(plan.source, plan.config, plan.device)
    layers = [LayerErrors.of(entry["errors"]) for entry in journal.layers()]
    keep = max(PROBED_SAMPLES, plan.kept_samples)
    statistics = layer_statistics(runner, tokens, journal.directory, keep, start=len(layers))
    for layer in range(len(layers), plan.geometry.num_layers):
        layers.append(layer_errors(plan, runner, grid, layer, next(statistics)))
        journal.add_layer(layer, {"errors": layers[-1].as_lists(), "seconds": lap()})
        on_event({"event": "probe", "number": layer, "of": plan.geometry.num_layers})
    remove_inputs(journal.directory)
    return layers


def _as_lists(fields: dict[str, Any]) -> dict[str, Any]:
    """As JSON will read it back."""
    return json.loads(json.dumps(fields))


def _curves(grid: SideGrid, errors: Sequence[torch.Tensor]) -> dict[TierFractions, list[Curve]]:
    """For each tiers the curves of all layers from their tables ``[ranks, tiers]``."""
    found = {}
    for column, fractions in enumerate(grid.tiers):
        sizes = tuple(grid.bytes(rank, fractions) for rank in grid.ranks)
        found[fractions] = [Curve(grid.ranks, sizes, tuple(table[:, column].tolist())) for table in errors]
    return found


def _plain(plan: Plan, layers: Sequence[LayerErrors]) -> dict[str, dict[str, float]]:
    geometry = plan.geometry
    errors = torch.stack([layer.plain for layer in layers]).sum(0)
    plain = {}
    for bits, error in zip(PLAIN_BITS, errors.tolist(), strict=True):
        head = geometry.head_dim * bits / 8 + HEADER_BYTES  # nothing for alignment
        size = 2 * geometry.num_layers * geometry.num_kv_heads * head
        plain[f"int{bits}"] = {"bytes_per_token": size, "predicted_error": error, "fits": size <= plan.budget_bytes}
    return plain
