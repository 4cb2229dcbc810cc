"""What ``--additional-config`` has for palu, wherever vLLM's configuration is at hand."""

from typing import Any

from vllm.config import VllmConfig


def palu_settings(vllm_config: VllmConfig) -> Any:
    """An object of JSON, unless it is wrong."""
    additional = vllm_config.additional_config
    return additional.get("palu", {}) if isinstance(additional, dict) else {}
