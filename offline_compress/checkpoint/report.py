"""What a compression gave: the contents of ``palu_report.json``."""

import json
from pathlib import Path
from typing import Any

import torch

from offline_compress.calibration.samples import CalibrationSamples
from offline_compress.checkpoint.palu_config import value_path_bytes
from offline_compress.checkpoint.plot import write_plot
from offline_compress.checkpoint.provenance import provenance
from offline_compress.checkpoint.written import Written
from offline_compress.plan import Plan
from offline_compress.run.memory import peak_memory_bytes
from offline_compress.searches import FISHER_SEARCHES
from palu_vllm.format.config import AttentionGeometry, PaluConfig, served_dtype
from palu_vllm.format.layers import layer_shape

REPORT = "palu_report.json"
ERROR_MEASURES = {"svd": "weights", "whiten": "activations", "weighted": "attention outputs"}


def cache_sizes(palu: PaluConfig, geometry: AttentionGeometry, dtype: str) -> dict[str, Any]:
    """Bytes of cache per token in the dtype of the checkpoint, and in the one that vLLM serves it in by default."""
    dense, kept = geometry.dense_bytes_per_token(dtype), palu.bytes_per_token(geometry, dtype)
    return {
        "dense_bytes_per_token": dense,
        "bytes_per_token": kept,
        "compression": dense / kept,
        "served_dtype": served_dtype(dtype),
        "served_bytes_per_token": palu.bytes_per_token(geometry, served_dtype(dtype)),
        "served_dense_bytes_per_token": geometry.dense_bytes_per_token(served_dtype(dtype)),
    }


def sizes(plan: Plan, palu: PaluConfig) -> dict[str, Any]:
    """What follows from the ranks: bytes per token, kept ratio, bytes of both value paths."""
    return cache_sizes(palu, plan.geometry, plan.dtype) | {
        "rank_ratio_nominal": None if plan.options.has_budget else plan.options.rank_ratio,
        "rank_ratio_realised": _kept_ratio(plan, palu),
        "tiers_k": [tier.model_dump() for tier in palu.tiers_k],
        "tiers_v": [tier.model_dump() for tier in palu.tiers_v],
        "hadamard": palu.hadamard,
        "latent_group_size": palu.latent_group_size,
        "latent_symmetric": palu.latent_symmetric,
        "clip_k": palu.clip_k,
        "clip_v": palu.clip_v,
        "group_size_k": palu.group_size_k,
        "group_size_v": palu.group_size_v,
        "full_rank_k": plan.full_ranks.key,
        "full_rank_v": plan.full_ranks.value,
        "rank_k": palu.rank_k,
        "rank_v": palu.rank_v,
        "source_layers": palu.source_layers,
        "shared_layers": palu.num_shared,
        "value_path": palu.value_path,
        "value_path_bytes": value_path_bytes(palu, plan.geometry, plan.dtype),
        "dtype": plan.dtype,
        "objective": palu.objective,
        "search": palu.search,
        "k_cost": plan.options.k_cost,
        "rebuild_work_per_token": rebuild_work(palu, plan.geometry),
        "refit": plan.refits,
        "reorder_heads": plan.reorders,
        "calibration": palu.calibration,
        "seed": palu.seed,
    }


def _kept_ratio(plan: Plan, palu: PaluConfig) -> float:
    """Numbers of latents over numbers of keys and values; equally many of both sides."""
    layers = palu.caching_layers
    rank_k, rank_v = (sum(ranks[layer] for layer in layers) for ranks in (palu.rank_k, palu.rank_v))
    kept = rank_k / plan.full_ranks.key + rank_v / plan.full_ranks.value
    return kept / (2 * plan.geometry.num_layers)


def rebuild_work(palu: PaluConfig, geometry: AttentionGeometry) -> int:
    """Multiplications that rebuild the keys of one cached token from latents, all layers."""
    layers = [layer_shape(palu, geometry, layer) for layer in range(geometry.num_layers)]
    return sum(shape.num_kv_heads * shape.head_dim * shape.rank_k for shape in layers if shape.has_k_up)


def final_report(
    plan: Plan,
    written: Written,
    samples: CalibrationSamples | None,
    baseline: int,
    seconds: float,
) -> dict[str, Any]:
    """The contents of ``palu_report.json``.

    ``relative_error_*`` per layer is ``|(W - W') S| / |W S|``: with whitening the relative error of keys or values
    (before bias) on the calibration data, with plain SVD (``S = I``) that of the weights, with the weighted objective
    the root of the share of what attention adds that is lost, to first order. Before ``up`` is fitted again.
    ``seconds``, memory and provenance are those of this run; ``layer_seconds`` of whichever run did a layer.
    """
    palu, outcomes, options = written.palu, [layer.outcome for layer in written.layers], plan.options
    count = len(samples.tokens) if samples else 0
    fisher = options.fisher_samples if palu.search in FISHER_SEARCHES and plan.truncates else 0
    whitening = options.whiten_samples if plan.needs_whitening else 0
    report = sizes(plan, palu) | {
        "relative_error_k": [outcome.key.error for outcome in outcomes],
        "relative_error_v": [outcome.value.error for outcome in outcomes],
        "error_measure": ERROR_MEASURES[options.objective],
        "whiten_samples": min(count, whitening),
        "fisher_samples": min(count, fisher),
        "calib_seqlen": plan.seqlen if samples else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "baseline_memory_bytes": baseline,
        "seconds": round(seconds, 2),
        "layer_seconds": [layer.seconds for layer in written.layers],
        "search_layer_seconds": written.search_seconds,
        "resumed_behind_layers": written.taken_over if any(written.taken_over.values()) else None,
        "notes": list(plan.notes),
        "provenance": provenance(plan.source, palu.calibration, samples.digest if samples else None),
    }
    if plan.device.type == "cuda":
        report["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(plan.device)
    return report | written.chosen


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Writes ``palu_report.json`` and, where matplotlib is installed, ``palu_report.png``."""
    (directory / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_plot(report, directory)
