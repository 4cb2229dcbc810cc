"""What a server may change about a checkpoint at its start: ``--additional-config '{"palu": {"latent_bits": 4}}'``."""

from collections.abc import Mapping
from typing import Any

from palu_vllm.attention_backend.graphs import CUDA_GRAPHS
from palu_vllm.attention_backend.settings import expect_true
from palu_vllm.format.config import AttentionGeometry, PaluConfig, TierConfig, whole_latent
from palu_vllm.loading.leading import ranks_at

LATENT_BITS = {"latent_bits": ("tiers_k", "tiers_v"), "latent_bits_k": ("tiers_k",), "latent_bits_v": ("tiers_v",)}
RANK_RATIO, HADAMARD, STREAMING_LLM = "rank_ratio", "hadamard", "streaming_llm"
SETTINGS = (*LATENT_BITS, RANK_RATIO, HADAMARD, STREAMING_LLM, CUDA_GRAPHS)


def checked_settings(settings: Any) -> Mapping[str, Any]:
    """The settings, each known. Raises ValueError with one sentence."""
    unknown = set(settings) - set(SETTINGS) if isinstance(settings, dict) else {settings}
    if unknown:
        raise ValueError(f"--additional-config has palu settings {unknown}; expected {', '.join(SETTINGS)}.")
    if CUDA_GRAPHS in settings:
        expect_true(CUDA_GRAPHS, settings[CUDA_GRAPHS])
    return settings


def changed_fields(settings: Mapping[str, Any], files: PaluConfig, geometry: AttentionGeometry) -> dict[str, Any]:
    """The fields of ``palu_config`` that settings change; none where they ask for what the files have.

    Bits may differ from the checkpoint's because its weights do not depend on them, ranks be fewer because any leading
    latents are a compressed model, and latents be mixed because that changes no product. Where any of it changes, the
    clip ratios of the checkpoint, which were searched for its own latents, give way to 1; scale groups and symmetric
    codes stay. Raises ValueError with one sentence for settings that make no sense.
    """
    changes = _other_bits(settings, files)
    if RANK_RATIO in settings:
        changes |= _fewer_ranks(files, geometry, _ratio(settings[RANK_RATIO]))
    if HADAMARD in settings:
        changes |= _mixing(files, settings[HADAMARD])
    return changes


def _other_bits(settings: Mapping[str, Any], files: PaluConfig) -> dict[str, Any]:
    """What ``latent_bits`` and its like change."""
    wanted: dict[str, list[TierConfig]] = {}
    for name, fields in LATENT_BITS.items():
        if name in settings:
            wanted |= dict.fromkeys(fields, whole_latent(_bits(name, settings[name])))
    changes: dict[str, Any] = {}
    for field, tiers in wanted.items():
        if tiers != getattr(files, field):
            changes[field] = [tier.model_dump() for tier in tiers]
            changes[field.replace("tiers", "clip")] = None
    return changes


def _fewer_ranks(files: PaluConfig, geometry: AttentionGeometry, ratio: float) -> dict[str, Any]:
    rank_k, rank_v = ranks_at(files, geometry, ratio)
    if (rank_k, rank_v) == (files.rank_k, files.rank_v):
        return {}
    return {"rank_k": rank_k, "rank_v": rank_v, "clip_k": None, "clip_v": None}


def _mixing(files: PaluConfig, wanted: Any) -> dict[str, Any]:
    expect_true(HADAMARD, wanted)
    return {} if files.hadamard else {"hadamard": True, "clip_k": None, "clip_v": None}


def _bits(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"--additional-config has {name}={value!r} for palu; expected a number of bits.")
    return value


def _ratio(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(
            f"--additional-config has {RANK_RATIO}={value!r} for palu; expected a fraction above 0, at most 1."
        )
    return float(value)
