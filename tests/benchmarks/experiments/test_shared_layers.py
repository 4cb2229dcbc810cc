"""Sharing and low rank at equal bytes: the command, and its table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.experiments.shared_layers import table

ROOT = Path(__file__).parents[3]


def test_the_table_has_a_row_per_number_of_layers_and_says_what_was_refused():
    scored = {"perplexity": 27.0, "kl": 0.1}
    rows = [{"budget": budget, "shared": shared} | scored for budget in (2, 4) for shared in (0, 1)]
    rows[-1] = {"budget": 4, "shared": 1, "refused": "a reason"}
    assert table(rows).splitlines() == [
        "| layers shared | 2x | 4x |",
        "|---|---|---|",
        "| 0 | 27.00 (0.1000) | 27.00 (0.1000) |",
        "| 1 | 27.00 (0.1000) | refused |",
    ]


@pytest.mark.slow
def test_rows_of_a_budget_take_at_most_its_bytes(tmp_path):
    out = tmp_path / "found.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.experiments.shared_layers",
        "--budgets",
        "2",
        "--shared",
        "0",
        "2",
        "--rows",
        "1",
    ]
    subprocess.run([*command, "--context", "128", "--calib-samples", "2", "--out", out], cwd=ROOT, check=True)
    rows = json.loads(out.read_text())["rows"]
    assert [len(row["sources"]) for row in rows] == [0, 2]
    assert all(0.9 * 3072 <= row["bytes_per_token"] <= 3072 for row in rows)
