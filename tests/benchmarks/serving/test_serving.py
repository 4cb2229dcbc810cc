"""The whole command on tiny random models: servers, loads, files."""

import json
import shutil
import subprocess
import sys

import pytest

from benchmarks.common.provenance import ROOT
from tests.support.serving import outside

pytestmark = [pytest.mark.serving, pytest.mark.slow]


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.serving", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=outside({}))


def test_half_the_bytes_hold_twice_the_contexts(dense, palu, tmp_path):
    """Ranks are half of a group's numbers. An arm that does not start is a row, not the end."""
    out, half = tmp_path / "side", palu("llama", 32, 32)
    refused = shutil.copytree(half, tmp_path / "refused") / "config.json"
    rope = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    refused.write_text(json.dumps(json.loads(refused.read_text()) | rope))
    flags = [
        "--model", str(dense("llama")), "--arms", f"dense,refused={refused.parent},half={half}", "--dummy",
        "--contexts", "64", "--output", "960", "--pool-mib", "16", "--block-size", "32", "--dtype", "float32",
        "--repeats", "1", "--out", str(out),
    ]  # fmt: skip
    ended = run(*flags)
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads(out.with_suffix(".json").read_text())
    assert len(result["rows"]) == 2, result["arms"]
    dense_row, half_row = result["rows"]
    assert result["arms"]["dense"]["bytes_per_token"] == pytest.approx(2048, rel=0.01)
    assert result["arms"]["half"]["bytes_per_token"] == pytest.approx(1024, rel=0.01)
    assert "rope type 'dynamic' is not supported" in result["arms"]["refused"]["missing"]
    assert half_row["held"] == 15 and dense_row["held"] == 7  # 511 and 255 blocks, 32 per request
    assert half_row["peak_running"]["least"] == half_row["load"] == 15
    assert dense_row["preemptions"]["least"] > 0 == half_row["preemptions"]["most"]
    assert "perplexity" not in result["arms"]["dense"]
    assert all(out.with_suffix(ending).stat().st_size for ending in (".html", ".png"))


def test_a_context_that_the_model_cannot_have(dense, tmp_path):
    ended = run("--model", str(dense("llama")), "--arms", "dense", "--contexts", "100000", "--out", str(tmp_path / "x"))
    assert ended.returncode == 1 and "the model's limit is" in ended.stderr.splitlines()[-1]
