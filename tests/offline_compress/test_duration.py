"""The predicted time grows with what there is to do, and is of the right size."""

import time

import pytest

from offline_compress import compress, duration


@pytest.fixture
def seconds(monkeypatch, dense, text, tmp_path):
    """Predicted for ten thousand multiplications a second."""
    monkeypatch.setattr(duration, "_speed", lambda device: 1e4)

    def predicted(**options) -> float:
        asked = {"calib_data": text, "calib_samples": 4, "calib_seqlen": 40, "dry_run": True} | options
        return compress(dense("llama"), tmp_path / "out", **asked)["predicted_seconds"]

    return predicted


def test_more_work_takes_longer(seconds):
    half = seconds(rank_ratio=0.5)
    assert half < seconds(rank_ratio=0.5, calib_samples=8)
    assert half < seconds(target_compression=4) < seconds(target_compression=4, exhaustive=True) / 3
    assert seconds(rank_ratio=0.5, objective="svd", search="uniform", calib_data=None) < half


def test_this_machine_multiplies():
    import torch

    began = time.perf_counter()
    assert duration._speed(torch.device("cpu")) > 1e8
    assert time.perf_counter() - began < 60
