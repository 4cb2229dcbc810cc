"""What the factors of a layer's projections are to keep best: the terms of ``decomposition.py``, per objective.

``svd``       the weights.
``whiten``    keys and values of the calibration data (the paper's method): ``H`` is the second moment of their inputs.
``weighted``  what attention adds to the residual stream: ``H``, and ``A`` of ``attention_weights.py`` for every group.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from offline_compress.calibration.probe import AttentionProbe
from offline_compress.calibration.statistics import damped
from offline_compress.factors.decomposition import Factors, decompose, discarded_energy
from offline_compress.factors.error_metric import key_weights, shared_reading, value_weights
from offline_compress.model.access import OUTPUT, projection
from offline_compress.plan import Plan
from offline_compress.run.errors import CompressionError

# probes of one layer and what they were made from, gone through as often as needed
Probes = Iterable[tuple[AttentionProbe, torch.Tensor]]


class Objective(NamedTuple):
    """Of one projection: ``H [hidden, hidden]`` and ``A [num_groups, full, full]``, float64, None for the identity."""

    moment: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def factors(self, weight: torch.Tensor, num_groups: int, rank: int) -> Factors:
        """The best factors of ``weight [num_groups * full, hidden]``."""
        return decompose(weight, num_groups, rank, self.moment, self.weights)

    def discarded_energy(self, weight: torch.Tensor, num_groups: int) -> torch.Tensor:
        """What they lose at every rank, ``[full + 1]`` float64."""
        return discarded_energy(weight, num_groups, self.moment, self.weights)


class LayerObjectives(NamedTuple):
    """Of K and of V of one layer."""

    key: Objective = Objective()
    value: Objective = Objective()


@torch.no_grad()
def layer_objectives(plan: Plan, layer: int, moment: torch.Tensor | None, probes: Probes) -> LayerObjectives:
    """Those of ``layer``; ``moment``, the second moment of its inputs, is damped in place where it is used.

    ``probes`` are gone through twice.
    Raises CompressionError where the calibration data gave nothing that can be used.
    """
    if not plan.needs_whitening:
        return LayerObjectives()
    moment = damped(layer, moment)
    if not plan.needs_weights:
        return LayerObjectives(Objective(moment), Objective(moment))
    per_head = key_weights(probe for probe, _ in probes)
    key = torch.stack([torch.block_diag(*heads) for heads in per_head.split(plan.key.size)])
    output = plan.source.tensor(projection(layer, OUTPUT)).to(plan.device)
    value = value_weights(
        shared_reading(probe for probe, _ in probes), output, plan.geometry.num_kv_heads, plan.value.num_groups
    )
    if not (torch.isfinite(key).all() and torch.isfinite(value).all()):
        raise CompressionError(f"layer {layer}: its attention is not finite; check the model or use --objective svd.")
    return LayerObjectives(Objective(moment, key), Objective(moment, value))
