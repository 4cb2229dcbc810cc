"""The one line that a server prints about its compression."""

import torch
import vllm
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
from vllm.logger import init_logger

from palu_vllm import __version__
from palu_vllm.attention_backend.kernel_path import kernel_path
from palu_vllm.config import AttentionGeometry, PaluConfig, TierShare

logger = init_logger("vllm.palu")  # vLLM prints nothing of loggers that are not below its own


def banner(config: dict, dtype: torch.dtype, device_type: str) -> str:
    """``config`` is a parsed ``config.json``; bytes are those of all layers on all devices together."""
    palu, geometry = PaluConfig.from_hf_config(config), AttentionGeometry.from_hf_config(config)
    name = str(dtype).removeprefix("torch.")
    dense, latent = geometry.dense_bytes_per_token(name), palu.bytes_per_token(geometry, name)
    return (
        f"palu-vllm {__version__} on vLLM {vllm.__version__}: {palu.group_sizes}, "
        f"rank_k {_range(palu.rank_k)}, rank_v {_range(palu.rank_v)} per group, {palu.value_path} values, "
        f"{_bits(palu.tiers_k)} bits in K and {_bits(palu.tiers_v)} in V, "
        f"{latent:,} bytes of KV cache per token instead of {dense:,} ({dense / latent:.2f}x the tokens), "
        f"{kernel_path(device_type)} kernels"
    )


def show_banner(vllm_config: VllmConfig) -> None:
    """Logs the banner once per server."""
    if get_pp_group().is_first_rank and get_tensor_model_parallel_rank() == 0:
        model = vllm_config.model_config
        logger.info("%s", banner(model.hf_config.to_dict(), model.dtype, vllm_config.device_config.device_type))


def _bits(tiers: list[TierShare]) -> str:
    return "/".join(str(tier.bits) for tier in tiers)


def _range(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}-{high}"
