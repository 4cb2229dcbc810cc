"""A server prints one line about its compression."""

from collections.abc import Sequence

import vllm
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
from vllm.logger import init_logger

from palu_vllm.server.facts import CacheFacts
from palu_vllm.startup.served import served_config
from palu_vllm.version import __version__

logger = init_logger("vllm.palu")  # vLLM prints nothing of loggers that are not below its own


def banner(facts: CacheFacts) -> str:
    return (
        f"palu-vllm {__version__} on vLLM {vllm.__version__}: {facts.group_sizes}, "
        f"rank_k {_range(facts.rank_k)}, rank_v {_range(facts.rank_v)} per group, {facts.value_path} values, "
        f"{facts.bits_k} bits in K and {facts.bits_v} in V, {_sharing(facts)}"
        f"{facts.bytes_per_token:,} bytes of KV cache per token in {facts.dtype} instead of "
        f"{facts.dense_bytes_per_token:,} ({facts.compression_ratio:.2f}x the tokens), {facts.kernels} kernels"
    )


def _sharing(facts: CacheFacts) -> str:
    if not facts.num_shared:
        return ""
    return f"{facts.num_shared} of {len(facts.source_layers)} layers read those of an earlier one, "


def show_banner(vllm_config: VllmConfig) -> None:
    """Logs the banner once per server, and what of a request is kept where that is not all of it."""
    if get_pp_group().is_first_rank and get_tensor_model_parallel_rank() == 0:
        served = served_config(vllm_config)
        logger.info("%s", banner(CacheFacts.of(served, vllm_config.device_config.device_type)))
        if served.streaming:
            kept = (served.streaming.start_size, served.streaming.recent_size)
            logger.info("of a request, only the first %d and the last %d tokens are kept and attended to", *kept)


def _range(ranks: Sequence[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}-{high}"
