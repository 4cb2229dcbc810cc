"""Prometheus metrics of a palu server: entry point ``vllm.stat_logger_plugins``.

vLLM makes one logger per engine, in the process of the API server, and calls it after every step. vLLM internals
used: ``StatLoggerBase`` (public, its statistics declared unstable) and ``cache_config.kv_cache_size_tokens``, which
the engine reports when it is ready. ``/metrics`` shows them beside vLLM's own, whose prefix they must not have.
"""

from functools import cache
from typing import Any

import vllm
from prometheus_client import Gauge
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from palu_vllm.server.facts import CacheFacts, served_facts
from palu_vllm.version import __version__

LABELS = ("model_name", "engine")
INFO = ("version", "vllm_version", "base_model", "group_size_k", "group_size_v", "bits_k", "bits_v", "value_path",
        "kernels")  # fmt: skip


@cache
def gauge(name: str, about: str, labels: tuple[str, ...] = LABELS) -> Gauge:
    """One of this name per process, because several engines share it."""
    return Gauge(name, about, labels, multiprocess_mode="mostrecent")


class PaluStatLogger(StatLoggerBase):
    """Publishes ``palu_*``; nothing where the model is neither a palu model nor has a codec."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._facts = served_facts(vllm_config)
        if self._facts is None:
            return
        names = vllm_config.model_config.served_model_name
        self._labels = (names if isinstance(names, str) else names[0], str(engine_index))
        self._capacity = getattr(vllm_config.cache_config, "kv_cache_size_tokens", None) or 0
        self._publish(self._facts)

    def _publish(self, facts: CacheFacts) -> None:
        values = facts.as_json() | {"version": __version__, "vllm_version": vllm.__version__}
        gauge("palu_info", "What is served, in its labels.", LABELS + INFO).labels(
            *self._labels, *(str(values[name]) for name in INFO)
        ).set(1)
        self._set("palu_cache_bytes_per_token", "Bytes of latents per token, all layers.", facts.bytes_per_token)
        self._set(
            "palu_dense_cache_bytes_per_token",
            "Bytes that the uncompressed model would keep per token.",
            facts.dense_bytes_per_token,
        )
        self._set("palu_compression_ratio", "Times fewer bytes than the dense cache.", facts.compression_ratio)
        self._set("palu_cache_capacity_tokens", "Tokens whose latents fit into the cache.", self._capacity)
        self._set_used(facts, 0.0)

    def _set(self, name: str, about: str, value: float) -> None:
        gauge(name, about).labels(*self._labels).set(value)

    def _set_used(self, facts: CacheFacts, usage: float) -> None:
        used = usage * self._capacity * facts.bytes_per_token
        self._set("palu_cache_used_bytes", "Bytes of latents that running requests hold.", used)

    def record(self, scheduler_stats: SchedulerStats | None, *_args: Any, **_options: Any) -> None:
        if self._facts is not None and scheduler_stats is not None:
            self._set_used(self._facts, scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None:
        """vLLM asks for it; everything is published at construction, when the engine is ready."""
