"""How long a compression takes, from its multiplications and from how fast this machine multiplies.

Counted are the passes of the samples through the layers, the attention that is probed or tried, and the decomposition.
Searches that run the whole model again (Fisher, sensitivity, MatryoshkaKV, shared layers) are not counted.
"""

import time

import torch

from offline_compress.calibration.statistics import kept_tokens
from offline_compress.plan import Plan
from offline_compress.ranks.rule import Rule, samples_of
from offline_compress.ranks.rules.budget import FINALISTS, NEAR
from offline_compress.ranks.storage_grid import TIERS, candidate_ranks

# what a step takes over its multiplications at full speed, measured on SmolLM2-135M with one thread
PASS, ATTENTION, DECOMPOSITION = 1.4, 4.0, 40.0
TRIED_SAMPLES = 2
SIDE, REPEATS = 1024, 4  # of the matrices that the machine is timed with


def seconds(plan: Plan, rule: Rule, samples: int) -> float:
    """Of the whole run, rounded."""
    _, passed, kept = samples_of(plan, rule)
    work = PASS * min(samples, passed) * _layer_work(plan)
    attentions = 2 * min(samples, kept) + (_tried(plan) if plan.options.has_budget else 0)
    work += ATTENTION * attentions * _attention_work(plan)
    work += DECOMPOSITION * sum(side.num_groups * side.full_rank**3 for side in plan.groupings)
    return round(plan.num_layers * work / _speed(plan.device))


def _tried(plan: Plan) -> int:
    """How many ways of storing a layer are tried in attention, on all compared samples."""
    ranks = sum(len(candidate_ranks(full)) for full in plan.full_ranks)
    if plan.options.exhaustive:
        return TRIED_SAMPLES * ranks * len(TIERS)
    near = sum(min(2 * NEAR + 1, len(candidate_ranks(full))) for full in plan.full_ranks)
    return TRIED_SAMPLES * (ranks + (FINALISTS + 1) * near // 2)  # most finalists differ in the tiers of one side


def _layer_work(plan: Plan) -> float:
    """Multiplications and additions of one sample in one layer."""
    geometry, inner = plan.geometry, plan.config.intermediate_size
    heads = geometry.num_heads + geometry.num_kv_heads
    matrices = geometry.hidden_size * (2 * heads * geometry.head_dim + 3 * inner)
    return 2 * plan.seqlen * matrices + 4 * plan.seqlen**2 * geometry.num_heads * geometry.head_dim


def _attention_work(plan: Plan) -> float:
    return 4 * kept_tokens(plan) ** 2 * plan.geometry.num_heads * plan.geometry.head_dim


def _speed(device: torch.device) -> float:
    """Multiplications and additions of float32 matrices per second, now."""
    matrix = torch.ones(SIDE, SIDE, device=device)
    (matrix @ matrix).sum().item()
    began = time.perf_counter()
    for _ in range(REPEATS):
        product = matrix @ matrix
    product.sum().item()
    return 2 * REPEATS * SIDE**3 / (time.perf_counter() - began)
