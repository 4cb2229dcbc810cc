"""Metrics of a codec: what its files say at once, drift as workers write it; Grafana asks for no other."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.stats import SchedulerStats

from palu_vllm.attention_backend.codec.drift_files import DriftFile
from palu_vllm.format.codec.file import REPORT
from palu_vllm.server.facts import served_facts
from palu_vllm.server.metrics import PaluStatLogger
from tests.palu_vllm.server.test_metrics import sample
from tests.support.codecs.models import write_codec

GRAFANA = Path(__file__).parents[3] / "docker" / "grafana" / "palu.json"


@pytest.fixture(scope="module")
def config(dense, tmp_path_factory):
    codec = write_codec(tmp_path_factory.mktemp("codecs") / "english", dense(), ((64, 3),), ((64, 4),))
    (codec / REPORT).write_text(json.dumps({"predicted_kl": 0.25, "kl": 0.5}))
    settings = {"palu": {"codec": str(codec)}}
    made = EngineArgs(str(dense()), dtype="float32", additional_config=settings).create_engine_config()
    made.cache_config.kv_cache_size_tokens = 1000
    return made


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_facts_are_published_at_once(config):
    PaluStatLogger(config, 21)
    facts = served_facts(config)
    assert sample("palu_cache_bytes_per_token", "21") == facts.bytes_per_token
    assert sample("palu_info", "21", value_path="codec", bits_k="3", bits_v="4", group_size_k="2") == 1
    assert sample("palu_codec_info", "21", codec="english", digest=facts.digest, layers="2", layers_left_dense="0") == 1
    assert sample("palu_codec_kl", "21", by="calibration") == 0.5
    assert sample("palu_codec_kl", "21", by="prediction") == 0.25
    assert sample("palu_codec_bits", "21", layer="1", side="key") == 3
    assert sample("palu_codec_drift_ratio", "21", over="mean") is None


def test_saved_bytes_follow_the_pool(config):
    PaluStatLogger(config, 22).record(SchedulerStats(kv_cache_usage=0.5), None)
    facts = served_facts(config)
    assert sample("palu_cache_used_bytes", "22") == pytest.approx(500 * facts.bytes_per_token)
    used = sample("palu_cache_used_bytes", "22") + sample("palu_cache_saved_bytes", "22")
    assert used == pytest.approx(500 * facts.dense_bytes_per_token)


def test_drift_is_what_workers_have_found(config):
    logger = PaluStatLogger(config, 0)
    logger.record(None, None)
    DriftFile(config, "layers.0").write({"layers.0": [1.0, 1.5], "layers.1": [0.5, 1.0]}, 48)
    logger.record(None, None)
    assert sample("palu_codec_drift_ratio", "0", over="mean") == 1.0
    assert sample("palu_codec_drift_ratio", "0", over="max") == 1.5
    assert sample("palu_codec_drift_tokens", "0") == 48


def test_every_metric_of_palu_in_the_grafana_dashboard_is_published(config):
    logger = PaluStatLogger(config, 0)
    DriftFile(config, "layers.0").write({"layers.0": [1.0, 1.5]}, 48)
    logger.record(SchedulerStats(), None)
    published = {each.name for family in REGISTRY.collect() for each in family.samples}
    asked = set(re.findall(r"palu_\w+", GRAFANA.read_text()))
    assert asked <= published and {"palu_codec_drift_ratio", "palu_cache_saved_bytes"} <= asked
