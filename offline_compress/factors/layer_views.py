"""Layer by layer, what decides how its projections are decomposed: one pass over the calibration data.

Whoever chooses ranks by it looks at all layers before the first is written. Their views are then kept on disk, so that
the samples go through the model once: of the second moment of a layer's inputs only Gram matrices as wide as a group.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from offline_compress.calibration.activations import remove_inputs
from offline_compress.calibration.layer_probes import LayerProbes, probing_bytes
from offline_compress.calibration.statistics import (
    KeptSample,
    LayerStatistics,
    kept_bytes,
    layer_statistics,
    running_bytes,
    second_moment_bytes,
)
from offline_compress.factors.all_groups import gram_bytes
from offline_compress.factors.head_order import layer_order, ordered_source
from offline_compress.factors.objective import Objective, layer_grams, layer_objectives, objective_bytes
from offline_compress.model.access import LayerRunner, dense_bytes, projection
from offline_compress.model.source import SourceModel
from offline_compress.plan import Plan
from palu_vllm.format.kv import KV

VIEWS = "view-"


@dataclass(frozen=True)
class LayerView:
    """One layer: ``source`` gives its heads in ``order``; ``probes`` are those of the samples that are kept, if any."""

    layer: int
    source: SourceModel
    order: list[int]
    device: torch.device
    objectives: KV[Objective]
    probes: LayerProbes | None = None

    def weight(self, name: str) -> torch.Tensor:
        """A dense projection as it is stored."""
        return self.source.tensor(projection(self.layer, name)).to(self.device)

    @property
    def inputs(self) -> torch.Tensor | None:
        """``[tokens, hidden]`` of the first sample that is kept; None without any."""
        return self.probes.samples[0].inputs if self.probes else None


@dataclass(frozen=True)
class LayerViews:
    """The views of all layers; ``tokens [samples, seqlen]`` are calibration data, None where none are needed.

    ``keep`` samples are kept at every layer. With ``twice`` views stay on disk in ``scratch`` and are read from there
    when they are asked for again, also by a run that goes on.
    """

    plan: Plan
    tokens: torch.Tensor | None
    keep: int
    scratch: Path
    twice: bool

    def behind(self, finished: int) -> Iterator[LayerView]:
        """Those of all layers but the first ``finished``, one at a time."""
        layers = range(finished, self.plan.num_layers)
        if self.tokens is None:
            yield from (self._without_data(layer) for layer in layers)
            return
        runner = LayerRunner(self.plan.source, self.plan.config, self.plan.device)
        stored = self._stored() if self.twice else finished
        statistics = layer_statistics(runner, self.tokens, self.scratch, self.keep, max(stored, finished))
        for layer in layers:
            # nothing here may keep a matrix alive while the next layer runs
            yield self._load(runner, layer) if layer < stored else self._made(runner, layer, statistics)

    def _without_data(self, layer: int) -> LayerView:
        order = layer_order(self.plan, layer, None)
        objectives = self.plan.groupings.map(lambda side: Objective(side.num_groups))
        return LayerView(layer, ordered_source(self.plan, order), order, self.plan.device, objectives)

    def _made(self, runner: LayerRunner, layer: int, statistics: Iterator[LayerStatistics]) -> LayerView:
        view = _view(self.plan, runner, layer, next(statistics))
        if self.twice:
            self._store(view)
            if layer == self.plan.num_layers - 1:
                remove_inputs(self.scratch)
        return view

    def _stored(self) -> int:
        """How many layers' views are on disk."""
        layer = 0
        while self._path(layer).exists():
            layer += 1
        return layer

    def _store(self, view: LayerView) -> None:
        """Puts ``view`` on the disk before its file gets its name."""
        path = self._path(view.layer)
        unfinished = path.with_name(f"{path.name}.part")
        samples = view.probes.samples if view.probes else ()
        with unfinished.open("wb") as file:
            torch.save(
                {
                    "order": view.order,
                    "objectives": [tuple(objective) for objective in view.objectives],
                    "samples": [(sample.inputs, sample.energy) for sample in samples],
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def _load(self, runner: LayerRunner, layer: int) -> LayerView:
        found = torch.load(self._path(layer), map_location=self.plan.device, weights_only=True)
        source = ordered_source(self.plan, found["order"])
        key, value = (Objective(*objective) for objective in found["objectives"])
        probes = LayerProbes(source, runner, layer, [KeptSample(*sample) for sample in found["samples"]])
        return LayerView(layer, source, found["order"], self.plan.device, KV(key, value), probes)

    def _path(self, layer: int) -> Path:
        return self.scratch / f"{VIEWS}{layer:05d}"


def _view(plan: Plan, runner: LayerRunner, layer: int, statistics: LayerStatistics) -> LayerView:
    order = layer_order(plan, layer, statistics.second_moment)
    source = ordered_source(plan, order)
    probes = LayerProbes(source, runner, layer, statistics.samples)

    def weight_of(name: str) -> torch.Tensor:
        return source.tensor(projection(layer, name)).to(plan.device)

    grams = layer_grams(plan, layer, statistics.second_moment, weight_of)
    del statistics  # the second moment is the largest of all; Gram matrices take its place
    return LayerView(layer, source, order, plan.device, layer_objectives(plan, layer, grams, probes, weight_of), probes)


def view_bytes(plan: Plan, keep: int) -> int:
    """What a view holds."""
    return objective_bytes(plan) + kept_bytes(plan, keep)


def peak_bytes(plan: Plan, passed: int, keep: int) -> int:
    """The most that making a view needs, where ``passed`` samples go through the layers."""
    if not passed:
        return 0
    kept, moment = kept_bytes(plan, keep), second_moment_bytes(plan)
    grams = objective_bytes(plan) + dense_bytes(plan.source) + gram_bytes(plan) if plan.needs_whitening else 0
    reading = objective_bytes(plan) + probing_bytes(plan) if plan.needs_probes else 0
    return kept + max(moment + running_bytes(plan), moment + grams, reading)


def disk_bytes(plan: Plan, keep: int) -> int:
    """Of the views of all layers, where they are kept."""
    return plan.num_layers * view_bytes(plan, keep)
