"""Palu models for vLLM."""

from palu_vllm.registry import require_supported_vllm

require_supported_vllm()
