"""What the factors of a layer's projections are to keep best: the terms of ``decomposition.py``, per objective.

``svd``       the weights.
``whiten``    keys and values of the calibration data (the paper's method): ``H`` is the second moment of their inputs.
``weighted``  what attention adds to the residual stream: ``H``, and ``A`` of ``error_metric.py`` for every group.

Of ``H`` a decomposition needs ``W_g H W_g^T`` only, which is as small as a group and kept in its place.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from offline_compress.calibration.probe import Probes
from offline_compress.factors.all_groups import decompose, discarded_energy, grams_of
from offline_compress.factors.decomposition import Factors, damp
from offline_compress.factors.error_metric import key_metric, shared_reading, value_metric
from offline_compress.model.access import KEY, OUTPUT, VALUE
from offline_compress.plan import Plan
from offline_compress.run.errors import CompressionError
from palu_vllm.format.kv import KV

FLOAT64 = 8


class Objective(NamedTuple):
    """Of one projection: ``W_g H W_g^T`` (lower triangle) and ``A`` of every group, ``[num_groups, full, full]`` each.

    Float64; without ``grams`` H is the identity, without ``error_metric`` A is.
    """

    num_groups: int
    grams: torch.Tensor | None = None
    error_metric: torch.Tensor | None = None

    def factors(self, weight: torch.Tensor, rank: int) -> Factors:
        """The best factors of ``weight [num_groups * full, hidden]``."""
        return decompose(weight, rank, self._grams(weight), self.error_metric)

    def discarded_energy(self, weight: torch.Tensor) -> torch.Tensor:
        """What they lose at every rank, ``[full + 1]`` float64."""
        return discarded_energy(self._grams(weight), self.error_metric)

    def _grams(self, weight: torch.Tensor) -> torch.Tensor:
        return grams_of(weight, self.num_groups) if self.grams is None else self.grams


def layer_grams(
    plan: Plan, layer: int, second_moment: torch.Tensor | None, weight_of: Callable[[str], torch.Tensor]
) -> KV[torch.Tensor | None]:
    """``W_g H W_g^T`` of every group of ``layer``; None for an objective without H.

    ``second_moment``, that of the layer's inputs, is damped in place; ``weight_of`` gives dense projections by name.
    Raises CompressionError where the calibration data gave nothing that can be used.
    """
    if second_moment is None or not plan.needs_whitening:
        return KV(None, None)
    damped, groups = _damped(layer, second_moment), plan.groupings
    key = grams_of(weight_of(KEY), groups.key.num_groups, damped)
    return KV(key, grams_of(weight_of(VALUE), groups.value.num_groups, damped))


@torch.no_grad()
def layer_objectives(
    plan: Plan,
    layer: int,
    grams: KV[torch.Tensor | None],
    probes: Probes,
    weight_of: Callable[[str], torch.Tensor],
) -> KV[Objective]:
    """Those of ``layer``; ``grams`` are those of :func:`layer_grams`, ``probes`` are gone through twice.

    Raises CompressionError where the attention of the calibration data cannot be used.
    """
    groups = plan.groupings
    key, value = None, None
    if plan.needs_error_metric:
        per_head = key_metric(probe for probe, _ in probes)
        key = torch.stack([torch.block_diag(*heads) for heads in per_head.split(groups.key.size)])
        overlap = shared_reading(probe for probe, _ in probes)
        value = value_metric(overlap, weight_of(OUTPUT), plan.geometry.num_kv_heads, groups.value.num_groups)
        if not (torch.isfinite(key).all() and torch.isfinite(value).all()):
            raise CompressionError(
                f"layer {layer}: its attention is not finite; check the model or use --objective svd."
            )
    return KV(Objective(groups.key.num_groups, grams.key, key), Objective(groups.value.num_groups, grams.value, value))


def _damped(layer: int, second_moment: torch.Tensor) -> torch.Tensor:
    """``H`` damped in place. Raises CompressionError where ``layer`` has seen nothing that can be used."""
    try:
        return damp(second_moment)
    except ValueError as error:
        raise CompressionError(f"layer {layer}: {error}; check the model or use --objective svd.") from error


def objective_bytes(plan: Plan) -> int:
    """What the objectives of a layer hold."""
    matrices = plan.needs_whitening + plan.needs_error_metric
    return matrices * sum(FLOAT64 * side.num_groups * side.full_rank**2 for side in plan.groupings)
