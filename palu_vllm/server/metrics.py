"""Prometheus metrics of a palu server: entry point ``vllm.stat_logger_plugins``.

vLLM makes one logger per engine, in the process of the API server, and calls it after every step. vLLM internals
used: ``StatLoggerBase`` (public, its statistics declared unstable) and ``cache_config.kv_cache_size_tokens``, which
the engine reports when it is ready. ``/metrics`` shows them beside vLLM's own, whose prefix they must not have.
"""

from typing import Any

import vllm
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from palu_vllm.server.codec_metrics import CodecMetrics
from palu_vllm.server.facts import CacheFacts, served_facts
from palu_vllm.server.gauges import Gauges
from palu_vllm.startup.codec.facts import CodecFacts
from palu_vllm.version import __version__


class PaluStatLogger(StatLoggerBase):
    """Publishes ``palu_*``; nothing where the model is neither a palu model nor has a codec."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._facts = served_facts(vllm_config)
        self._codec: CodecMetrics | None = None
        if self._facts is None:
            return
        names = vllm_config.model_config.served_model_name
        self._gauges = Gauges(names if isinstance(names, str) else names[0], engine_index)
        self._capacity = getattr(vllm_config.cache_config, "kv_cache_size_tokens", None) or 0
        self._publish(self._facts)
        if isinstance(self._facts, CodecFacts):
            self._codec = CodecMetrics(self._facts, vllm_config, engine_index, self._gauges)

    def _publish(self, facts: CacheFacts | CodecFacts) -> None:
        versions = {"version": __version__, "vllm_version": vllm.__version__}
        self._gauges.set("palu_info", "What is served, in its labels.", 1, **versions, **facts.labels)
        for name, about, value in (
            ("palu_cache_bytes_per_token", "Bytes per token in all compressed layers.", facts.bytes_per_token),
            ("palu_dense_cache_bytes_per_token", "The same without compression.", facts.dense_bytes_per_token),
            ("palu_compression_ratio", "Times fewer bytes than the dense cache.", facts.compression_ratio),
            ("palu_cache_capacity_tokens", "Tokens that fit into the cache.", self._capacity),
        ):
            self._gauges.set(name, about, value)
        self._set_used(facts, 0.0)

    def _set_used(self, facts: CacheFacts | CodecFacts, usage: float) -> None:
        tokens = usage * self._capacity
        saved = facts.dense_bytes_per_token - facts.bytes_per_token
        used = "Bytes that running requests hold in compressed layers."
        self._gauges.set("palu_cache_used_bytes", used, tokens * facts.bytes_per_token)
        self._gauges.set("palu_cache_saved_bytes", "Bytes that they would hold more in a dense cache.", tokens * saved)

    def record(self, scheduler_stats: SchedulerStats | None, *_args: Any, **_options: Any) -> None:
        if self._facts is not None and scheduler_stats is not None:
            self._set_used(self._facts, scheduler_stats.kv_cache_usage)
        if self._codec is not None:
            self._codec.record()

    def log_engine_initialized(self) -> None:
        """vLLM asks for it; everything is published at construction, when the engine is ready."""
