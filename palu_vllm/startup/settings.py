"""What a server may change about a checkpoint at its start: ``--additional-config '{"palu": {"latent_bits": 4}}'``."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from vllm.config import VllmConfig

from palu_vllm.format.config import AttentionGeometry, PaluConfig, whole_latent
from palu_vllm.format.layers import layer_shape
from palu_vllm.loading.leading import STORED, ranks_at, stored_config
from palu_vllm.startup.streaming_llm import STREAMING_LLM, StreamingLLM

LATENT_BITS = {"latent_bits": ("tiers_k", "tiers_v"), "latent_bits_k": ("tiers_k",), "latent_bits_v": ("tiers_v",)}
RANK_RATIO, HADAMARD = "rank_ratio", "hadamard"
SETTINGS = (*LATENT_BITS, RANK_RATIO, HADAMARD, STREAMING_LLM)


def apply_settings(vllm_config: VllmConfig) -> None:
    """Writes the settings into the model's ``palu_config``, where all that follows reads them. Harmless to repeat.

    Bits may differ from the checkpoint's because its weights do not depend on them, ranks be fewer because any leading
    latents are a compressed model, and latents be rotated because that changes no product. Where any of it changes, the
    clip ratios of the checkpoint, which were searched for its own latents, give way to 1; groups and symmetric codes
    stay. Raises ValueError with one sentence for settings that are unknown or make no sense.
    """
    settings = (vllm_config.additional_config or {}).get("palu", {})
    unknown = set(settings) - set(SETTINGS) if isinstance(settings, dict) else {settings}
    if unknown:
        raise ValueError(f"--additional-config has palu settings {unknown}; expected {', '.join(SETTINGS)}.")
    hf_config = vllm_config.model_config.hf_config
    changes = _other_bits(settings, hf_config.palu_config)
    if RANK_RATIO in settings:
        changes |= _fewer_ranks(hf_config, _ratio(settings[RANK_RATIO]))
    if HADAMARD in settings:
        changes |= _rotation(hf_config, settings[HADAMARD], changes)
    if STREAMING_LLM in settings:
        _stream(hf_config, settings[STREAMING_LLM])
    if changes:
        hf_config.palu_config = {**hf_config.palu_config, **changes}
        PaluConfig.from_hf_config(hf_config.to_dict())


def _other_bits(settings: Mapping[str, Any], palu_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``palu_config`` that ``latent_bits`` and its like change."""
    changes: dict[str, Any] = {}
    for name, fields in LATENT_BITS.items():
        for field in fields if name in settings else ():
            changes[field] = [tier.model_dump() for tier in whole_latent(_bits(name, settings[name]))]
    for field in [field for field in changes if changes[field] != palu_config.get(field)]:
        changes[field.replace("tiers", "clip")] = None
    return changes


def _fewer_ranks(hf_config: PretrainedConfig, ratio: float) -> dict[str, Any]:
    """The fields that ``rank_ratio`` changes; ``hf_config`` is told the ranks of the files, for loading them."""
    config = stored_config(hf_config.to_dict())
    palu = PaluConfig.from_hf_config(config)
    rank_k, rank_v = ranks_at(palu, AttentionGeometry.from_hf_config(config), ratio)
    if (rank_k, rank_v) == (palu.rank_k, palu.rank_v):
        return {}
    if config.get("quantization_config") and palu.value_path == "fused":
        raise ValueError(
            "rank_ratio cannot cut a quantized o_proj that has v_up multiplied into it; "
            "compress the model with --value-path factored, or quantize it at this ratio."
        )
    _remember_files(hf_config, palu)
    return {"rank_k": rank_k, "rank_v": rank_v, "clip_k": None, "clip_v": None}


def _stream(hf_config: PretrainedConfig, knobs: Any) -> None:
    if PaluConfig.from_hf_config(hf_config.to_dict()).num_shared:
        raise ValueError(
            f"{STREAMING_LLM} is not proven for layers that share a cache, which this checkpoint has; leave it out."
        )
    StreamingLLM.asked(knobs).write(hf_config)


def _remember_files(hf_config: PretrainedConfig, files: PaluConfig) -> None:
    setattr(hf_config, STORED, {"rank_k": files.rank_k, "rank_v": files.rank_v, "hadamard": files.hadamard})


def _rotation(hf_config: PretrainedConfig, wanted: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that ``hadamard`` changes, after those of bits and ranks; none where the files are rotated already."""
    if wanted is not True:
        raise ValueError(f"--additional-config has {HADAMARD}={wanted!r} for palu; expected true, or leave it out.")
    config = stored_config(hf_config.to_dict())
    files = PaluConfig.from_hf_config(config)
    if files.hadamard:
        return {}
    if files.num_shared:
        raise ValueError(
            f"{HADAMARD} is not proven for layers that share a cache, which this checkpoint has; leave it out."
        )
    served = PaluConfig.model_validate({**config["palu_config"], **changes})
    if not served.is_packed:
        raise ValueError(f"{HADAMARD} rotates latents for few bits, but these have 16; give latent_bits too.")
    if config.get("quantization_config") and not _has_plain_output(served, AttentionGeometry.from_hf_config(config)):
        raise ValueError(
            "hadamard cannot rotate a quantized o_proj that takes latents or whole values; "
            "quantize a checkpoint that palu-compress has rotated, or leave hadamard out."
        )
    _remember_files(hf_config, files)
    return {"hadamard": True, "clip_k": None, "clip_v": None}


def _has_plain_output(palu: PaluConfig, geometry: AttentionGeometry) -> bool:
    """Whether every output projection follows ``v_up``, so that no rotation reaches it."""
    shapes = (layer_shape(palu, geometry, layer) for layer in range(geometry.num_layers))
    return all(shape.value_path == "factored" for shape in shapes)


def _bits(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"--additional-config has {name}={value!r} for palu; expected a number of bits.")
    return value


def _ratio(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(
            f"--additional-config has {RANK_RATIO}={value!r} for palu; expected a share above 0, at most 1."
        )
    return float(value)
