"""Host time: what is timed, and that stubbed launches bind and compile as real ones do."""

import os
import subprocess
import sys
import time

from benchmarks.common.provenance import ROOT
from benchmarks.gpu.host_time import CALLS, seconds_per_call

ON_A_STUB = """
import torch
from benchmarks.gpu.l2_read import TINY
from benchmarks.gpu.stub_driver import pretend
stub = pretend()
source, target = TINY.buffers(torch.device("cpu"))
for _ in range(3):
    TINY.run(source, target)
print(stub.launches, stub.target.arch, bool((target == -1).all()))
"""


def test_the_first_round_and_the_waiting_are_not_timed():
    calls, waits = [], []

    def run():
        calls.append(1)
        if len(calls) <= CALLS:
            time.sleep(0.001)

    taken = seconds_per_call(run, lambda: waits.append(time.sleep(0.02)), rounds=2)
    assert len(taken) == 2 and len(calls) == 3 * CALLS and len(waits) == 3
    assert max(taken) < 0.0005


def test_a_stub_launches_what_it_compiles_for_and_nothing_runs(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", ON_A_STUB]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "90", "True"], done.stderr
    assert list(tmp_path.rglob("*.cubin")), "it was compiled for the chip"


def test_an_interpreter_is_not_timed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu.host_time", "--arm", "palu_16", "--rows", str(tmp_path / "rows")]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "TRITON_INTERPRET=1 would time an interpreter" in done.stderr
