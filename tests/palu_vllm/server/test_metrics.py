"""Metrics name what is served, in Prometheus' registry, once per engine."""

import pytest
from prometheus_client import REGISTRY
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.stats import SchedulerStats

from palu_vllm.server.facts import served_facts
from palu_vllm.server.metrics import PaluStatLogger


def config_of(model):
    config = EngineArgs(model=str(model), dtype="float32", enforce_eager=True).create_engine_config()
    config.cache_config.kv_cache_size_tokens = 1000
    return config


@pytest.fixture(scope="module")
def served(palu):
    return config_of(palu("llama", (32, 24), (40, 16)))


def sample(name, engine, **labels):
    found = [s for family in REGISTRY.collect() for s in family.samples
             if s.name == name and s.labels.get("engine") == engine and labels.items() <= s.labels.items()]  # fmt: skip
    assert len(found) <= 1, found
    return found[0].value if found else None


def test_every_engine_publishes_bytes_ratio_and_capacity(served):
    facts = served_facts(served)
    for engine in (7, 8):
        PaluStatLogger(served, engine)
    for engine in ("7", "8"):
        assert sample("palu_cache_bytes_per_token", engine) == facts.bytes_per_token
        assert sample("palu_dense_cache_bytes_per_token", engine) == facts.dense_bytes_per_token
        assert sample("palu_compression_ratio", engine) == pytest.approx(facts.compression_ratio)
        assert sample("palu_cache_capacity_tokens", engine) == 1000
        assert sample("palu_cache_used_bytes", engine) == 0
        assert sample("palu_info", engine, bits_k="16", value_path=facts.value_path) == 1


def test_bytes_in_use_follow_the_pool(served):
    logger = PaluStatLogger(served, 9)
    logger.record(SchedulerStats(kv_cache_usage=0.25), None, engine_idx=9)
    assert sample("palu_cache_used_bytes", "9") == pytest.approx(0.25 * 1000 * served_facts(served).bytes_per_token)
    logger.record(None, None)
    assert sample("palu_cache_used_bytes", "9") > 0
    logger.record(SchedulerStats(kv_cache_usage=0.0), None)
    assert sample("palu_cache_used_bytes", "9") == 0


def test_another_model_publishes_nothing(dense):
    logger = PaluStatLogger(config_of(dense()), 10)
    logger.record(SchedulerStats(kv_cache_usage=0.5), None)
    assert sample("palu_info", "10") is None and sample("palu_cache_used_bytes", "10") is None


def test_no_name_begins_as_those_that_vllm_removes(served):
    PaluStatLogger(served, 11)
    ours = {family.name for family in REGISTRY.collect() if "palu" in family.name}
    assert ours and all(name.startswith("palu_") for name in ours)
