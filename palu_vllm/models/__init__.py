"""Palu models for vLLM."""

from palu_vllm.plugin import require_supported_vllm

require_supported_vllm()
