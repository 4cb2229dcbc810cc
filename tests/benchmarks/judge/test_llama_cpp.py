"""llama.cpp's caches: bytes as GGML stores them, and its cache in 16 bits is its own reference."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.judge import llama_cpp
from benchmarks.judge.arms.arm import Heads

FOLDER = Path(os.environ.get("PALU_MODELS", "models"))


def test_bytes_are_those_of_blocks_of_32():
    heads = Heads(num_layers=2, num_kv_heads=3, head_dim=64)
    blocks = 2 * 2 * 3 * 64 // 32
    assert llama_cpp.sizes("q8_0", heads)["bytes_per_token"] == blocks * (32 + 2)
    assert llama_cpp.sizes("q5_0", heads)["bytes_per_token"] == blocks * (20 + 2)
    assert llama_cpp.sizes("q4_0", heads)["bytes_per_token"] == blocks * (16 + 2)
    assert llama_cpp.sizes("f16", heads)["times_fewer_bytes"] == 1


@pytest.mark.slow
def test_the_exact_cache_is_its_own_reference(tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason="the extra 'judge' is not installed")
    if not (FOLDER / "smollm2").exists():
        pytest.skip("PALU_MODELS names no folder of benchmarks.real_models")
    out = tmp_path / "judge.json"
    asked = ["--folder", FOLDER, "--kinds", "wiki", "--context", 64, "--caches", "f16", "q4_0", "--out", out]
    monkeypatch.setattr(sys, "argv", ["judge", *map(str, asked)])
    llama_cpp.main()
    exact, coded = json.loads(out.read_text())["rows"]
    assert exact["kl"] < 1e-5 < 1e-3 < coded["kl"] and exact["top1"] == 1
