"""A summary says of every step how it ended, and passes only where all did."""

import json
import sys

import pytest

from benchmarks.gpu.summary import main, outcome, summary, table


def step(name: str, status: int) -> dict:
    return {"step": name, "status": status, "seconds": 1.5, "limit": 20}


@pytest.mark.parametrize(
    ("status", "said"),
    [(0, "passed"), (1, "failed"), (2, "failed"), (3, "waiting for parts"), (124, "timed out"), (137, "timed out"),
     (-1, "left out")],
)  # fmt: skip
def test_outcomes(status, said):
    assert outcome(status) == said
    found = summary([step("a", 0), step("b", status)])
    assert found["passed"] == (status == 0)
    assert said in table(found).splitlines()[1]


def test_the_command_writes_and_prints(tmp_path, monkeypatch, capsys):
    steps, out = tmp_path / "steps.jsonl", tmp_path / "summary.json"
    steps.write_text("".join(json.dumps(step(name, 0)) + "\n" for name in "ab"))
    monkeypatch.setattr(sys, "argv", ["summary", str(steps), str(out)])
    main()
    assert json.loads(out.read_text())["passed"] and capsys.readouterr().out.endswith("all steps passed\n")
