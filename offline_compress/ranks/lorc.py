"""LoRC's rule (Zhang et al., 2024, arXiv 2410.03111): ``--search lorc``, ranks from the weights alone.

What a layer loses is amplified by the layers behind it, by no more than their condition numbers, the largest over the
smallest singular value of ``k_proj`` and of ``v_proj``. With ``s_l`` the sum of their logarithms over layer l and all
behind it, K and V of layer l get

    d_l = d_max (1 - (max s - s_l) / (max s - min s) (1 - d_min / d_max))

so that deeper layers get less. The budget gives ``d_max``; ``d_min`` is half of it (our choice), but for ranks that
reach the smallest or the full one.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from offline_compress.factors.decomposition import group_energy
from offline_compress.model.access import KEY, VALUE, projection
from offline_compress.plan import Plan
from offline_compress.run.journal import Journal
from offline_compress.run.memory import release_freed_memory
from offline_compress.run.progress import OnEvent
from offline_compress.run.stopwatch import lap, part
from offline_compress.run.workers import one_thread

LEAST_SHARE = 0.5  # d_min / d_max
RESOLVED = 1e-7  # of the largest singular value: below it squares in float64 say nothing (decomposition.py)


def condition_number(weight: torch.Tensor) -> float:
    """Largest over smallest singular value of ``weight [rows, hidden]``, any float dtype; at most ``1 / RESOLVED``.

    1 where the weight is zero.
    """
    values = group_energy(weight, None).sqrt()
    largest, smallest = values[-1].item(), values[-min(weight.shape)].item()
    return largest / max(smallest, RESOLVED * largest) if largest else 1.0


def progressive_weights(conditions: Sequence[Sequence[float]]) -> list[float]:
    """``d_l / d_max`` of every layer from the condition numbers of its K and V."""
    logs = [math.fsum(math.log(each) for each in pair) for pair in conditions]
    behind = list(accumulate(reversed(logs)))[::-1]
    spread = max(behind) - min(behind)
    return [1 - (1 - LEAST_SHARE) * (max(behind) - own) / spread if spread else 1.0 for own in behind]


def importance_of(conditions: Sequence[Sequence[float]]) -> list[list[float]]:
    """Of K0, V0, K1, V1, ..., for ``allocate_ranks``: one number each."""
    return [[weight] for weight in progressive_weights(conditions) for _ in (KEY, VALUE)]


def measured_conditions(plan: Plan, journal: Journal, on_event: OnEvent) -> list[list[float]]:
    """``[[of K, of V], ...]`` of every layer; goes on behind the last one in ``journal``."""
    finished = [entry["conditions"] for entry in journal.layers()]
    for layer in range(len(finished), plan.geometry.num_layers):
        finished.append([_of_projection(plan, layer, name) for name in (KEY, VALUE)])
        journal.add_layer(layer, {"conditions": finished[-1], "seconds": lap()})
        release_freed_memory()
        on_event({"event": "conditions", "number": layer, "of": plan.geometry.num_layers})
    return finished


def _of_projection(plan: Plan, layer: int, name: str) -> float:
    weight = plan.source.tensor(projection(layer, name)).to(plan.device)
    with part("svd"), one_thread():
        return condition_number(weight)


def condition_report(conditions: Sequence[Sequence[float]]) -> dict[str, Any]:
    """For ``palu_report.json``."""
    return {
        "condition_number_k": [key for key, _ in conditions],
        "condition_number_v": [value for _, value in conditions],
        "share_of_d_max": progressive_weights(conditions),
    }
