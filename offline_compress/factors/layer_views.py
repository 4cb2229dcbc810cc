"""Layer by layer, what decides how its projections are decomposed: one pass over the calibration data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from offline_compress.calibration.statistics import LayerStatistics, layer_statistics
from offline_compress.factors.head_order import ordered_plan
from offline_compress.factors.objective import LayerObjectives, layer_objectives
from offline_compress.model.access import LayerRunner, projection
from offline_compress.plan import Plan
from offline_compress.ranks.layer_errors import LayerProbes
from offline_compress.run.stopwatch import part


@dataclass(frozen=True)
class LayerView:
    """One layer: ``plan.source`` gives its heads in ``order``, ``inputs`` are the first sample's, None without data.

    ``probes`` are those that ``up`` is fitted on again, empty where it is not.
    """

    plan: Plan
    order: list[int]
    objectives: LayerObjectives = LayerObjectives()
    probes: LayerProbes | tuple[()] = ()
    inputs: torch.Tensor | None = None

    def weight(self, layer: int, name: str) -> torch.Tensor:
        return self.plan.source.tensor(projection(layer, name)).to(self.plan.device)


def layer_views(plan: Plan, tokens: torch.Tensor | None, scratch: Path, start: int = 0) -> Iterator[LayerView]:
    """One per layer from ``start`` on, as in :func:`layer_statistics`.

    ``tokens [samples, seqlen]`` are calibration data, None where none are needed.
    """
    layers = range(start, plan.geometry.num_layers)
    if tokens is None:
        yield from (LayerView(*ordered_plan(plan, layer, None)) for layer in layers)
        return
    runner = LayerRunner(plan.source, plan.config, plan.device)
    statistics = layer_statistics(runner, tokens, scratch, plan.kept_samples, start)
    for layer in layers:
        # nothing here may keep a matrix alive while the next layer runs
        yield _view(plan, runner, layer, next(statistics))


def _view(plan: Plan, runner: LayerRunner, layer: int, statistics: LayerStatistics) -> LayerView:
    view = LayerView(*ordered_plan(plan, layer, statistics.moment))
    kept = statistics.samples if plan.needs_probes else ()
    probes = LayerProbes(view.plan, runner, layer, kept)
    with part("attention"):
        objectives = layer_objectives(view.plan, layer, statistics.moment, probes)
    inputs = statistics.samples[0].inputs if statistics.samples else None
    return replace(view, objectives=objectives, probes=probes if plan.refits else (), inputs=inputs)
