"""What a server may change about a checkpoint at its start: ``--additional-config '{"palu": {"latent_bits": 4}}'``."""

from typing import Any

from vllm.config import VllmConfig

from palu_vllm.config import PaluConfig, whole_latent

LATENT_BITS = {"latent_bits": ("tiers_k", "tiers_v"), "latent_bits_k": ("tiers_k",), "latent_bits_v": ("tiers_v",)}


def apply_settings(vllm_config: VllmConfig) -> None:
    """Writes the settings into the model's ``palu_config``, where all that follows reads them. Harmless to repeat.

    Bits may differ from the checkpoint's because its weights do not depend on them. Where they do, the clip ratios of
    the checkpoint, which were searched for its own bits, give way to 1; groups and symmetric codes stay. Raises
    ValueError with one sentence for settings that are unknown or make no sense.
    """
    settings = (vllm_config.additional_config or {}).get("palu", {})
    unknown = set(settings) - set(LATENT_BITS) if isinstance(settings, dict) else {settings}
    if unknown:
        raise ValueError(f"--additional-config has palu settings {unknown}; expected {', '.join(LATENT_BITS)}.")
    hf_config = vllm_config.model_config.hf_config
    changes: dict[str, Any] = {}
    for name, fields in LATENT_BITS.items():
        for field in fields if name in settings else ():
            changes[field] = [tier.model_dump() for tier in whole_latent(_bits(name, settings[name]))]
    for field in [field for field in changes if changes[field] != hf_config.palu_config.get(field)]:
        changes[field.replace("tiers", "clip")] = None
    if changes:
        hf_config.palu_config = {**hf_config.palu_config, **changes}
        PaluConfig.from_hf_config(hf_config.to_dict())


def _bits(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"--additional-config has {name}={value!r} for palu; expected a number of bits.")
    return value
