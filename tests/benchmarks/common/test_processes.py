"""No process outlives the one that started it, however that ends; progress is a log that grows or CPU time."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from benchmarks.common.processes import Progress, own_session
from benchmarks.common.provenance import ROOT
from tests.support.processes.stalls import PATIENCE

# a leader with a child that does not mind SIGTERM; the log gets the ids of both
FAMILY = ["sh", "-c", "(trap '' TERM; sleep 500; sleep 500) & echo $$ $!; wait"]
PARENT = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from benchmarks.common.processes import own_session
with own_session(sys.argv[2:], Path(sys.argv[1])):
    while True:
        time.sleep(1)
"""


def family(log: Path) -> list[psutil.Process]:
    """The leader and its child, once both run; a test whose processes do nothing ends, see ``stalls``."""
    while not log.exists() or "\n" not in log.read_text():
        time.sleep(0.05)
    return [psutil.Process(int(pid)) for pid in log.read_text().split()]


def all_gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all end in time; one that ended and that nobody has waited for is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_group_ends_with_a_parent_that_is_killed(tmp_path, how):
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, log, *FAMILY], cwd=ROOT, stderr=subprocess.DEVNULL)
    started = family(log)
    assert len({os.getsid(each.pid) for each in started} | {os.getsid(0)}) == 2
    parent.send_signal(how)
    assert parent.wait(PATIENCE) != 0
    assert all_gone(started, PATIENCE)


def test_group_ends_with_a_block_that_fails(tmp_path):
    with pytest.raises(ValueError, match="no good"), own_session(FAMILY, tmp_path / "log") as process:
        started = family(tmp_path / "log")
        raise ValueError("no good")
    assert process.returncode == -signal.SIGTERM
    assert all_gone(started, PATIENCE)


def test_what_its_leader_leaves_behind_ends_too(tmp_path):
    with own_session(["sh", "-c", "sleep 500 & echo $$ $!"], tmp_path / "log") as process:
        started = family(tmp_path / "log")
        assert process.wait(PATIENCE) == 0 and started[1].is_running()
    assert all_gone(started, PATIENCE)


@pytest.mark.parametrize(
    ("command", "moves"),
    [
        (["sleep", "500"], False),
        (["sh", "-c", "while sleep 0.2; do echo line; done"], True),
        ([sys.executable, "-c", "while True: pass"], True),
        (["sh", "-c", f"{sys.executable} -c 'while True: pass' & wait"], True),
    ],
    ids=["quiet", "log grows", "CPU time", "CPU time of a child"],
)
def test_progress(tmp_path, command, moves):
    log = tmp_path / "log"
    with own_session(command, log) as process:
        progress = Progress(process.pid, log)
        deadline, quiet = time.monotonic() + (PATIENCE if moves else 3), [progress.quiet_seconds()]
        while time.monotonic() < deadline and not moved(quiet):
            time.sleep(0.3)
            quiet.append(progress.quiet_seconds())
    assert moved(quiet) == moves


def moved(quiet: list[float]) -> bool:
    """Whether the quiet time has been put back."""
    return any(later < earlier for earlier, later in pairwise(quiet))
