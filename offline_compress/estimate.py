"""What ``--dry-run`` prints: memory, disk and time that a compression will need, from what each of its steps says."""

from typing import Any

from offline_compress.calibration.samples import CalibrationSamples
from offline_compress.checkpoint.output import tensor_specs
from offline_compress.checkpoint.palu_config import palu_config
from offline_compress.checkpoint.report import sizes
from offline_compress.duration import seconds
from offline_compress.factors.layer import peak_bytes as writing_bytes
from offline_compress.factors.layer_views import disk_bytes as views_disk_bytes
from offline_compress.model.source import READING_BYTES
from offline_compress.plan import NO_CALIBRATION, Plan
from offline_compress.ranks.allocation import uniform_ranks
from offline_compress.ranks.layer_sharing import peak_bytes as sharing_bytes
from offline_compress.ranks.rule import Rule, samples_of, view_peak_bytes
from palu_vllm.format.kv import KV

FLOAT32 = 4
# what torch and its linear algebra add to the interpreter when they are first used, measured
LIBRARY_BYTES = 48 << 20


def estimate(plan: Plan, rule: Rule, samples: CalibrationSamples | None, baseline: int) -> dict[str, Any]:
    """Sizes are exact, but for what a search will choose."""
    searched = plan.options.share_layers
    if searched:  # any layers: all hold equally many bytes here
        plan = plan.sharing(tuple((plan.num_layers - each, 0) for each in range(1, searched + 1)))
    palu = palu_config(plan, uniform_ranks(plan), samples.label if samples else NO_CALIBRATION)
    count = len(samples.tokens) if samples else 0
    choosing = rule.peak_bytes(plan, count)
    layers = layer_bytes(plan, rule, count, 0 if rule.whole_model else choosing)
    whole = choosing if rule.whole_model else 0
    sharing = sharing_bytes(plan) if searched else 0
    budget = {"budget_bytes_per_token": plan.budget_bytes} if plan.options.has_budget else {}
    return (
        sizes(plan, palu)
        | budget
        | ({"source_layers": None} if searched else {})
        | {
            "ranks_are_final": rule.final,
            "predicted_peak_memory_bytes": baseline + max(layers, whole, sharing),
            "predicted_layer_memory_bytes": layers,
            "predicted_fisher_memory_bytes": whole,
            "predicted_sharing_memory_bytes": sharing,
            "disk_bytes": sum(spec.num_bytes for spec in tensor_specs(plan, palu)),
            "temporary_disk_bytes": temporary_bytes(plan, rule, count),
            "predicted_seconds": seconds(plan, rule, count),
        }
    )


def layer_bytes(plan: Plan, rule: Rule, samples: int, choosing: int) -> int:
    """The most that one layer needs beyond the interpreter: whichever of its steps holds most."""
    uniform = uniform_ranks(plan)
    most = KV(max(layer.key for layer in uniform), max(layer.value for layer in uniform))
    kept = min(samples, samples_of(plan, rule).kept)
    writing = writing_bytes(plan, rule.likely_ranks(plan, most), kept)
    return LIBRARY_BYTES + max(view_peak_bytes(plan, rule, samples), writing, choosing, READING_BYTES)


def temporary_bytes(plan: Plan, rule: Rule, samples: int) -> int:
    """Activations before and behind a layer, views that are kept, and what the rule writes; gone at the end."""
    _, passed, kept = samples_of(plan, rule)
    activations = 2 * min(samples, passed) * FLOAT32 * plan.seqlen * plan.geometry.hidden_size
    views = views_disk_bytes(plan, min(samples, kept)) if rule.needs(plan).views and passed else 0
    return views + max(activations, rule.disk_bytes(plan))
