"""The errors of one layer's attention with every way of storing its keys and values, on its calibration samples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import rms_norm

from offline_compress.attention_probe import AttentionProbe, sketch
from offline_compress.decomposition import decompose
from offline_compress.model_access import KEY, NORMS, OUTPUT, QUERY, VALUE, LayerRunner, projection
from offline_compress.plan import Plan
from offline_compress.statistics import KeptSample, LayerStatistics, damped
from offline_compress.storage_errors import Projected, plain_errors, storage_errors
from offline_compress.storage_grid import Grid


@dataclass(frozen=True)
class LayerErrors:
    """``[ranks, tiers]`` for K and for V, and ``[PLAIN_BITS]`` for both in plain bits; means over samples."""

    key: torch.Tensor
    value: torch.Tensor
    plain: torch.Tensor


@torch.no_grad()
def layer_errors(plan: Plan, runner: LayerRunner, grid: Grid, layer: int, statistics: LayerStatistics) -> LayerErrors:
    """Of layer ``layer``. Overwrites ``statistics.moment``."""
    moment = damped(layer, statistics.moment) if plan.needs_whitening else None
    samples = [(probe_of(plan, runner, layer, sample), sample.inputs) for sample in statistics.samples]
    finished = _before_rotation(plan, layer, KEY)
    tables = []
    for name, storages in ((KEY, grid.keys()), (VALUE, grid.values())):
        weight = _weight(plan, layer, name)
        factors = decompose(weight, plan.num_groups, plan.full_rank, moment)
        found = []
        for probe, inputs in samples:
            projected = Projected.of(factors, inputs, _heads(plan, inputs @ weight.float().T))
            error = partial(_key_error, probe, finished) if name == KEY else probe.value_error
            found.append(storage_errors(projected, error, storages))
        tables.append(torch.stack(found).mean(0))
    return LayerErrors(*tables, torch.stack([plain_errors(probe) for probe, _ in samples]).mean(0))


def _key_error(probe: AttentionProbe, finished: Callable[[torch.Tensor], torch.Tensor], keys: torch.Tensor) -> float:
    """Keys are cached without their bias, before their norm."""
    return probe.key_error(finished(keys))


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
    )


def _weight(plan: Plan, layer: int, name: str) -> torch.Tensor:
    return plan.source.tensor(projection(layer, name)).to(plan.device)


def _bias(plan: Plan, layer: int, name: str) -> torch.Tensor:
    """Float32; zero where the projection has none."""
    stored = plan.source.tensors.get(projection(layer, name, "bias"))
    rows = plan.source.tensors[projection(layer, name)].shape[0]
    return torch.zeros(rows, device=plan.device) if stored is None else stored.read().float().to(plan.device)


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
