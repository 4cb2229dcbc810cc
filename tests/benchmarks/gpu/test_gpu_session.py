"""Both calls of a GPU session, rehearsed on a CPU: every step passes, and every promised file has its rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.provenance import ROOT
from benchmarks.gpu.setting import CODED, read

SESSION = ROOT / "benchmarks" / "gpu" / "session.sh"
MOST_FILES = 8  # that come back from the machine
SECONDS = 600
ARMS = ("palu", "palu_packed", "codec", "torch_sdpa")
CHECKS = ("store", "decode", "prefill", "graph")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The script, with this Python and two workers."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("OUT", "TRITON_INTERPRET")}
    own = {"PYTHON": sys.executable, "WORKERS": "2"} | environment
    command = ["bash", SESSION, *arguments]
    return subprocess.run(command, env=inherited | own, cwd=ROOT, capture_output=True, text=True)


def steps(out: Path) -> dict[str, str]:
    found = json.loads((out / "summary.json").read_text())
    return {row["step"]: row["outcome"] for row in found["steps"]}


def assert_passed(out: Path, done: subprocess.CompletedProcess) -> None:
    assert set(steps(out).values()) == {"passed"}, (out / "log.txt").read_text()[-20000:]
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "all steps passed"
    assert sum(step["seconds"] for step in json.loads((out / "summary.json").read_text())["steps"]) < SECONDS
    assert len(list(out.iterdir())) <= MOST_FILES and all(file.stat().st_size for file in out.iterdir())


@pytest.mark.slow
def test_the_first_call(tmp_path):
    done = run("1", "--rehearse", OUT=str(tmp_path))
    assert_passed(tmp_path, done)
    assert {f"smoke-{arm}" for arm in CODED} | {f"latency-{arm}" for arm in ARMS} | {"tests"} <= set(steps(tmp_path))
    env = json.loads((tmp_path / "env.json").read_text())
    assert min(env[f"{name}_per_second"] for name in ("copy_bytes", "product_flops", "l2_bytes")) > 0
    assert {"commit", "versions"} <= set(env["provenance"])
    assert {"registers", "stack", "seconds", "synchronous_loads", "triton"} <= set(read(tmp_path / "compile.jsonl")[0])
    smoke = read(tmp_path / "smoke.jsonl")
    assert [(row["arm"], row["check"]) for row in smoke] == [(arm, check) for arm in CODED for check in CHECKS]
    assert all(row["ok"] and row["rehearsal"] for row in smoke)
    rows = read(tmp_path / "rows.jsonl")
    latency = [row for row in rows if row["experiment"] == "kernel_latency"]
    assert [(row["arm"], row["batch"]) for row in latency] == [(arm, batch) for arm in ARMS for batch in (1, 2)]
    assert all(row["seconds"]["median"] > 0 and row["relative_error"] < 0.02 for row in latency)
    host = [row for row in rows if row["experiment"] == "host_time"]
    assert [row["arm"] for row in host] == list(CODED) and all(row["attend_microseconds"] > 0 for row in host)
    assert " passed" in (tmp_path / "tests.txt").read_text() and "profile_target" in (tmp_path / "ncu.txt").read_text()


@pytest.mark.slow
@pytest.mark.serving
def test_the_second_call(tmp_path):
    done = run("2", "--rehearse", OUT=str(tmp_path))
    assert_passed(tmp_path, done)
    rows = read(tmp_path / "rows.jsonl")
    others = [row for row in rows if row["experiment"] == "kernel_latency"]
    names = ("flash_attention_3", "flash_attention_3_fp8", "vllm_triton")
    assert {row["arm"] for row in others} == set(names) and all("missing" in row for row in others)
    times = [row for row in rows if row["experiment"] == "time_per_token"]
    assert {(row["arm"], row["batch"]) for row in times} == {(arm, n) for arm in ("dense", "palu_16") for n in (1, 2)}
    assert all(row["seconds_per_step"] > 0 for row in times)
    (tokens,) = read(tmp_path / "tokens.jsonl")
    assert tokens["ok"] and tokens["equal_tokens"] == tokens["prompts"] * tokens["tokens"]


def test_a_step_that_fails_stops_none_and_one_without_time_is_left_out(tmp_path):
    """A Python that fails at everything but the summary, and a call that is over from the beginning."""
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *summary*) exec {sys.executable} "$@";; esac\necho broken; exit 7\n')
    broken.chmod(0o755)
    for name, budget, outcome in (("failing", "60", "failed"), ("over", "0", "left out")):
        out = tmp_path / name
        done = run("1", "--rehearse", OUT=str(out), PYTHON=str(broken), BUDGET=budget)
        assert set(steps(out).values()) == {outcome} and len(steps(out)) == 15
        assert done.stdout.splitlines()[-1] == "NOT all steps passed"


@pytest.mark.parametrize("arguments", [(), ("3",), ("1", "--rehearsal")], ids=str)
def test_usage(arguments, tmp_path):
    done = run(*arguments, OUT=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_without_a_folder_for_the_results_nothing_runs():
    assert run("1").returncode == 2
