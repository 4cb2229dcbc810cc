"""The errors of one layer's attention with every way of storing its keys and values, on its calibration samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import rms_norm

from offline_compress.calibration.probe import AttentionProbe, sketch
from offline_compress.calibration.statistics import KeptSample, LayerStatistics
from offline_compress.factors.head_order import ordered_plan
from offline_compress.factors.objective import Objective, layer_objectives
from offline_compress.factors.refit import Refit, read_keys, read_values
from offline_compress.model.access import KEY, NORMS, OUTPUT, QUERY, VALUE, LayerRunner, projection
from offline_compress.plan import Plan
from offline_compress.ranks.storage_errors import Projected, plain_errors, storage_errors
from offline_compress.ranks.storage_grid import Grid, SideGrid
from offline_compress.run.stopwatch import part

PROBED_SAMPLES = 2
Error = Callable[[torch.Tensor], float]  # of keys or values that are not the exact ones


@dataclass(frozen=True)
class LayerErrors:
    """``[ranks, tiers]`` for K and for V, and ``[PLAIN_BITS]`` for both in plain bits; means over samples."""

    key: torch.Tensor
    value: torch.Tensor
    plain: torch.Tensor

    @classmethod
    def of(cls, lists: dict[str, list]) -> "LayerErrors":
        """From :meth:`as_lists`."""
        return cls(**{name: torch.tensor(values, dtype=torch.float64) for name, values in lists.items()})

    def as_lists(self) -> dict[str, list]:
        return {name: values.tolist() for name, values in vars(self).items()}


@torch.no_grad()
def layer_errors(plan: Plan, runner: LayerRunner, grid: Grid, layer: int, statistics: LayerStatistics) -> LayerErrors:
    """Of layer ``layer``. Overwrites ``statistics.moment``."""
    plan, _ = ordered_plan(plan, layer, statistics.moment)
    probes = LayerProbes(plan, runner, layer, statistics.samples)
    with part("attention"):
        objectives = layer_objectives(plan, layer, statistics.moment, probes)
    samples = list(LayerProbes(plan, runner, layer, statistics.samples[:PROBED_SAMPLES]))
    finished = _before_rotation(plan, layer, KEY)
    tables = []
    sides = zip((KEY, VALUE), (grid.key, grid.value), (read_keys, read_values), objectives, strict=True)
    for name, side, read, objective in sides:
        weight = _weight(plan, layer, name)
        refit = Refit(read, probes if plan.refits else ())
        errors = [partial(_key_error, probe, finished) if name == KEY else probe.value_error for probe, _ in samples]
        inputs = [rows for _, rows in samples]
        tables.append(_table(side, weight, objective, refit, list(zip(inputs, errors, strict=True))))
    return LayerErrors(*tables, torch.stack([plain_errors(probe) for probe, _ in samples]).mean(0))


def _table(
    side: SideGrid,
    weight: torch.Tensor,
    objective: Objective,
    refit: Refit,
    samples: Sequence[tuple[torch.Tensor, Error]],
) -> torch.Tensor:
    """``[ranks, tiers]`` of one projection, mean over samples of inputs and what their errors are measured by."""
    factors = objective.factors(weight, side.groups.num_groups, side.groups.full_rank)
    fitted, storages = refit.at_ranks(factors, weight, side.ranks[:-1]), side.storages()

    def of_sample(inputs: torch.Tensor, error: Error) -> torch.Tensor:
        whole = _heads(side.plan, inputs @ weight.float().T)
        return storage_errors(Projected.of(factors, inputs, whole, fitted), error, storages)

    return torch.stack([of_sample(*sample) for sample in samples]).mean(0)


def _key_error(probe: AttentionProbe, finished: Callable[[torch.Tensor], torch.Tensor], keys: torch.Tensor) -> float:
    """Keys are cached without their bias, before their norm."""
    return probe.key_error(finished(keys))


@dataclass(frozen=True)
class LayerProbes:
    """Probes of one layer with the ``inputs [tokens, hidden]`` that they were made from, made anew at every pass."""

    plan: Plan
    runner: LayerRunner
    layer: int
    samples: Sequence[KeptSample]

    def __iter__(self) -> Iterator[tuple[AttentionProbe, torch.Tensor]]:
        for sample in self.samples:
            yield probe_of(self.plan, self.runner, self.layer, sample), sample.inputs

    def __len__(self) -> int:
        return len(self.samples)


def probe_of(plan: Plan, runner: LayerRunner, layer: int, sample: KeptSample) -> AttentionProbe:
    """The dense layer's attention on a sample. The value bias is left out: it leaves attention as a constant."""
    tokens = len(sample.inputs)

    def projected(name: str) -> torch.Tensor:
        heads = _heads(plan, sample.inputs @ _weight(plan, layer, name).float().T)
        return heads if name == VALUE else _before_rotation(plan, layer, name)(heads)

    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=sample.inputs.device).tril()
    mask = runner.mask(tokens)
    positions = torch.arange(tokens, device=sample.inputs.device)[None]
    return AttentionProbe(
        queries=projected(QUERY),
        keys=projected(KEY),
        values=projected(VALUE),
        output=sketch(_weight(plan, layer, OUTPUT)),
        rotary=tuple(table[0] for table in runner.rotary(sample.inputs, positions)),
        visible=visible if mask is None else mask[0, 0],
        energy=sample.energy,
        key_gain=_key_gain(plan, layer, sample.inputs),
    )


def _key_gain(plan: Plan, layer: int, inputs: torch.Tensor) -> torch.Tensor | None:
    """What the norm of keys multiplies a small error by, ``[num_kv_heads, tokens, head_dim]``; None without norm."""
    name = projection(layer, NORMS[KEY])
    if name not in plan.source.tensors:
        return None
    heads = _heads(plan, inputs @ _weight(plan, layer, KEY).float().T + _bias(plan, layer, KEY))
    length = (heads.square().mean(-1, keepdim=True) + plan.config.rms_norm_eps).sqrt()
    return plan.source.tensor(name).float().to(plan.device) / length


def _weight(plan: Plan, layer: int, name: str) -> torch.Tensor:
    return plan.source.tensor(projection(layer, name)).to(plan.device)


def _bias(plan: Plan, layer: int, name: str) -> torch.Tensor:
    """Float32; zero where the projection has none."""
    bias = projection(layer, name, "bias")
    if bias not in plan.source.tensors:
        return torch.zeros(plan.source.tensors[projection(layer, name)].shape[0], device=plan.device)
    return plan.source.tensor(bias).float().to(plan.device)


def _before_rotation(plan: Plan, layer: int, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What becomes of projected heads ``[heads, tokens, head_dim]`` before they are rotated: bias, and norm if any."""
    bias = _heads(plan, _bias(plan, layer, name)[None])
    stored = plan.source.tensors.get(projection(layer, NORMS[name]))
    if stored is None:
        return lambda heads: heads + bias
    weight, eps = stored.read().float().to(plan.device), plan.config.rms_norm_eps
    return lambda heads: rms_norm(heads + bias, weight.shape, weight, eps)


def _heads(plan: Plan, rows: torch.Tensor) -> torch.Tensor:
    """``[tokens, heads * head_dim]`` to ``[heads, tokens, head_dim]``."""
    return rows.unflatten(-1, (-1, plan.geometry.head_dim)).transpose(0, 1)
