"""The benchmark of storing on a CPU: both arms store, and a row has both times."""

import pytest
import torch

from benchmarks.latency import cpu_store
from benchmarks.latency.cpu_arms import Shape
from palu_vllm.kernels.cpu.compiled import why_not

SMALL = Shape(2, 32, 3, 3, 64)


@pytest.mark.skipif(why_not() is not None, reason="no C++ library")
def test_a_row_per_codec(monkeypatch):
    monkeypatch.setattr(cpu_store, "dense", lambda shape: lambda: torch.zeros(1))
    rows = cpu_store.rows_of(SMALL, 2)
    assert [row["arm"] for row in rows] == ["codec-4x", "codec-4x, per head"]
    assert all(row["palu_us"] > 0 and row["dense_us"] > 0 and row["shape"] == "2 tokens, 3 of 3, 64" for row in rows)


def test_every_token_has_a_block_of_its_own():
    key, value, slots = cpu_store.new_tokens(SMALL)
    assert key.shape == value.shape == (2, 3, 64) and slots.tolist() == [0, 32]
