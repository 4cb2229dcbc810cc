"""The benchmark of a CPU's attention: every arm runs, and a row says what it is compared with."""

import pytest
import torch

from benchmarks.latency import cpu_codec
from benchmarks.latency.cpu_arms import Shape, coded, latents
from palu_vllm.kernels.cpu.compiled import why_not

SMALL = Shape(2, 64, 2, 2, 32)
TIERS = (((32, 4),), ((16, 8), (16, 2)))


@pytest.mark.skipif(why_not() is not None, reason="no C++ library")
def test_a_row_has_both_times_and_their_ratio(monkeypatch):
    monkeypatch.setattr(cpu_codec, "CODECS", {(2, 2, 32): {"codec": (2, TIERS)}})
    monkeypatch.setattr(cpu_codec, "PAPER_GROUP", {(2, 2, 32): 2})
    monkeypatch.setattr(cpu_codec, "dense", lambda shape, dtype: lambda: torch.zeros(1))
    rows = cpu_codec.cells_of(SMALL, 2)
    assert [row["arm"] for row in rows] == ["codec", "paper, half the rank"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["palu_ms"] / row["dense_ms"]) and row["phase"] == "decode"


@pytest.mark.skipif(why_not() is not None, reason="no C++ library")
def test_bytes_are_those_of_the_slots():
    assert coded(SMALL, 2, TIERS)[1] == 2 * 64 * 2 * (4 + 16 + 20)
    assert latents(SMALL, 2)[1] == 2 * 64 * 2 * 32 * 4


def test_products_count_what_queries_see():
    assert cpu_codec.products(SMALL, 64) == 2 * 2 * 64 * 4 * 64
    prompt = Shape(1, 4, 2, 2, 32, queries=4)
    assert cpu_codec.products(prompt, 64) == 2 * (4 + 3 + 2 + 1) * 4 * 64
