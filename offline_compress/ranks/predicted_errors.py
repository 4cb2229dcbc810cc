"""The errors of all ways of storing a layer, predicted: what ranks cut is tried in attention, what bits round is not.

Cutting ranks makes errors that tokens share, which attention adds up: one attention per rank and sample says what that
costs. Rounding makes errors of each token's own. Their cost is a quadratic form, ``e^T A e`` with the error metric of
``error_metric.py``, weighed by how much a token is read; so it takes a product instead of an attention. Both add up.
The clip ratio of a rounding is searched once per tiers, at the widest rank, and taken for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from offline_compress.calibration.probe import AttentionProbe
from offline_compress.factors.clip_ratio import best_clip_ratio
from offline_compress.factors.error_metric import key_metric, read_energy, shared_reading, value_metric
from offline_compress.factors.layer_views import LayerView
from offline_compress.grouping import Grouping
from offline_compress.model.access import OUTPUT
from offline_compress.ranks.storage_errors import Projected, Storage
from palu_vllm.format.kv import KV


@dataclass(frozen=True)
class Rounding:
    """What errors of a sample's tokens cost: ``metric [groups, full, full]`` for all who read them, and which part of
    that is each token's, ``reads [num_kv_heads, tokens]``.
    """

    metric: torch.Tensor
    reads: torch.Tensor

    def cost(self, lost: torch.Tensor) -> float:
        """Of errors ``lost [tokens, groups, full]``."""
        heads = len(self.reads) // len(self.metric)
        weights = self.reads.sqrt().unflatten(0, (-1, heads)).permute(2, 0, 1)  # [tokens, groups, heads]
        weighed = (lost.unflatten(-1, (heads, -1)) * weights[..., None]).flatten(-2)
        return torch.einsum("tgf,gfk,tgk->", weighed, self.metric, weighed).item()


@torch.no_grad()
def roundings(view: LayerView, probe: AttentionProbe, groups: KV[Grouping]) -> KV[Rounding]:
    """Of keys and of values, on one sample."""
    per_kv = probe.probabilities.shape[1]
    heads = range(len(probe.keys))
    key = torch.stack([sum(read_energy(probe, head, query).sum(0) for query in range(per_kv)) for head in heads])
    value = torch.stack([(probe.probabilities[head].square() / probe.energy[:, None]).sum((0, 1)) for head in heads])
    found = view.objectives.map(lambda objective: objective.error_metric)
    if found.key is not None and found.value is not None:
        metrics = KV(found.key, found.value)
    else:
        per_head = key_metric([probe])
        own = torch.stack([torch.block_diag(*some) for some in per_head.split(groups.key.size)])
        metrics = KV(
            own, value_metric(shared_reading([probe]), view.weight(OUTPUT), len(heads), groups.value.num_groups)
        )
    # reads of a head add up to one: how much there is to read in all is in the metric
    return KV(*(Rounding(metric.to(reads), reads / reads.sum(1, keepdim=True).clamp(min=1e-30))
                for metric, reads in zip(metrics, (key, value), strict=True)))  # fmt: skip


def rounding_costs(projected: Projected, rounding: Rounding, storages: Sequence[Sequence[Storage]]) -> torch.Tensor:
    """Float64 in the order of ``storages [ranks][tiers]``."""
    clips = [_clip(projected, storage) for storage in storages[-1]]
    rows = [
        [rounding.cost(_lost(projected, _fixed(storage, clip))) for storage, clip in zip(row, clips, strict=True)]
        for row in storages
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _fixed(storage: Storage, clip: float | None) -> Storage:
    return storage if clip is None else replace(storage, form=replace(storage.form, clip=clip), searches_clip=False)


def _clip(projected: Projected, storage: Storage) -> float | None:
    """The ratio for the widest rank; None where it is given."""
    if not storage.searches_clip:
        return None
    latents, up = projected.of_rank(storage.form.rank)
    if storage.mixing is not None:
        mixing = storage.mixing().to(latents)
        latents, up = latents @ mixing.T, None if up is None else mixing @ up
    return best_clip_ratio(latents, up, storage.form)


def _lost(projected: Projected, storage: Storage) -> torch.Tensor:
    """What rounding takes from keys or values, ``[tokens, groups, full]``."""
    latents, up = projected.of_rank(storage.form.rank)
    lost = storage.read_back(latents, up) - latents
    return lost if up is None else torch.einsum("tgr,grf->tgf", lost, up)
