"""Time per decoded token: ratios of medians, bad texts, and the whole command on tiny models."""

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks.common.provenance import ROOT
from benchmarks.serving import cpu
from tests.support.serving import outside
from tests.support.tiny_models import write_text


def test_ratios_are_of_medians_to_the_first_arm():
    rows = cpu.rows_of({"dense": [0.010, 0.090, 0.020], "other": [0.030, 0.030, 0.010]})
    assert [row["ratio"] for row in rows] == [1.0, 1.5]
    assert rows[1]["ms_per_token"] == 30 and rows[0]["repeats_ms"] == [10, 90, 20]


def test_a_text_too_short_for_the_batch(dense, tmp_path):
    write_text(tmp_path / "text.txt")
    asked = argparse.Namespace(model=dense("llama"), text=tmp_path / "text.txt", context=1 << 20, batch=8)
    with pytest.raises(ValueError, match="expected 1048577 x 8: lower --context or --batch"):
        cpu.distinct_prompts(asked)


@pytest.mark.serving
@pytest.mark.slow
def test_every_arm_has_a_row(dense, palu, tmp_path):
    write_text(tmp_path / "text.txt")
    out = tmp_path / "times.json"
    arms = f"dense,half={palu('llama', 32, 32)}"
    asked = ["--model", dense("llama"), "--arms", arms, "--context", 32, "--batch", 2, "--tokens", 8,
             "--repeats", 1, "--enforce-eager", "--text", tmp_path / "text.txt", "--out", out]  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.serving.cpu", *map(str, asked)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=outside({}))
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads(out.read_text())
    assert [row["arm"] for row in result["rows"]] == ["dense", "half"] and result["batch"] == 2
    assert all(row["ms_per_token"] > 0 for row in result["rows"]) and "half |" in ended.stdout
