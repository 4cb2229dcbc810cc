"""What ``--additional-config`` has for palu, wherever vLLM's configuration is at hand."""

from typing import Any

from vllm.config import VllmConfig


def palu_settings(vllm_config: VllmConfig) -> Any:
    """An object of JSON, unless it is wrong."""
    additional = vllm_config.additional_config
    return additional.get("palu", {}) if isinstance(additional, dict) else {}


def expect_true(name: str, value: Any) -> None:
    """Raises ValueError, one sentence, for another value of a setting that is true or left out."""
    if value is not True:
        raise ValueError(f"--additional-config has {name}={value!r} for palu; expected true, or leave it out.")
