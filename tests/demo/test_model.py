"""The shipped model is small, real, and uses its cache; its texts do not overlap."""

import json

import pytest

from benchmarks.common.shipped import CALIBRATION, HELD_OUT, MODEL
from demo.check import check
from offline_compress import compress


@pytest.fixture(scope="module")
def dense():
    return check(MODEL)


def test_size_and_shape():
    config = json.loads((MODEL / "config.json").read_text())
    assert (MODEL / "model.safetensors").stat().st_size <= 16 * 2**20
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] >= 2048


def test_texts_share_no_document():
    calibration, evaluation = (set(path.read_text().split("\n\n")) for path in (CALIBRATION, HELD_OUT))
    assert calibration.isdisjoint(evaluation)
    assert len(calibration) > 50 and len(evaluation) > 50


@pytest.mark.slow
def test_a_passage_that_returns_costs_half(dense):
    assert dense["returning_loss_ratio"] <= 0.5


@pytest.mark.slow
def test_facts_are_recalled_over_a_thousand_tokens(dense):
    assert dense["recall"] >= 0.8


@pytest.mark.slow
def test_plain_svd_at_a_quarter_hurts_clearly(dense, tmp_path):
    compress(MODEL, tmp_path / "out", rank_ratio=0.25, objective="svd", search="uniform")
    assert check(tmp_path / "out")["perplexity"] > 1.1 * dense["perplexity"]


@pytest.mark.slow
def test_documented_numbers_are_measured(dense):
    recorded = json.loads((MODEL / "training.json").read_text())["checked"]
    assert recorded == pytest.approx(dense, rel=0.02)
