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

from offline_compress.factors.decomposition import BLOCK_ROWS, gram_matrix, group_energy
from offline_compress.model.access import KEY, VALUE, dense_bytes, projection
from offline_compress.plan import Plan
from offline_compress.ranks.allocation import by_matrix, ranks_by_importance
from offline_compress.ranks.rule import Calibration, Chosen, Rule
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from offline_compress.run.workers import one_thread
from palu_vllm.format.kv import KV

FLOAT64 = 8
LEAST_SHARE = 0.5  # d_min / d_max
RESOLVED = 1e-7  # of the largest singular value: below it squares in float64 say nothing (decomposition.py)


def condition_number(weight: torch.Tensor) -> float:
    """Largest over smallest singular value of ``weight [rows, hidden]``, any float dtype; at most ``1 / RESOLVED``.

    1 where the weight is zero.
    """
    values = group_energy(gram_matrix(weight, None)).sqrt()
    largest, smallest = values[-1].item(), values[-min(weight.shape)].item()
    return largest / max(smallest, RESOLVED * largest) if largest else 1.0


def progressive_weights(conditions: Sequence[KV[float]]) -> list[float]:
    """``d_l / d_max`` of every layer from the condition numbers of its K and V."""
    logs = [math.fsum(math.log(each) for each in pair) for pair in conditions]
    behind = list(accumulate(reversed(logs)))[::-1]
    spread = max(behind) - min(behind)
    return [1 - (1 - LEAST_SHARE) * (max(behind) - own) / spread if spread else 1.0 for own in behind]


class Lorc(Rule):
    """One layer's projections are in memory at a time."""

    def peak_bytes(self, plan: Plan, samples: int) -> int:
        """A projection, the Gram matrix of all its heads and what LAPACK adds."""
        width = plan.geometry.num_kv_heads * plan.geometry.head_dim
        rows = FLOAT64 * min(BLOCK_ROWS, width) * plan.geometry.hidden_size
        return dense_bytes(plan.source) + 3 * FLOAT64 * width**2 + 2 * rows

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        def measured(layer: int) -> dict[str, Any]:
            return {"conditions": [_of_projection(plan, layer, name) for name in (KEY, VALUE)]}

        def told(layer: int, _: dict[str, Any]) -> None:
            tell({"event": "conditions", "number": layer, "of": plan.num_layers})

        entries = journal.over_layers(plan.num_layers, measured, told)
        conditions = [KV(*entry["conditions"]) for entry in entries]
        weights = progressive_weights(conditions)
        importance = [KV([weight], [weight]) for weight in weights]
        found = {
            "condition_number_k": [layer.key for layer in conditions],
            "condition_number_v": [layer.value for layer in conditions],
            "share_of_d_max": weights,
        }
        return Chosen(ranks_by_importance(plan, importance, by_matrix), {"rank_search": found})


def _of_projection(plan: Plan, layer: int, name: str) -> float:
    weight = plan.source.tensor(projection(layer, name)).to(plan.device)
    with one_thread():
        return condition_number(weight)


RULE = Lorc()
