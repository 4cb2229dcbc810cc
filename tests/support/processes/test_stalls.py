"""A test that waits for nothing ends; one that works, itself or in a child, goes on."""

import subprocess
import sys
import time

import pytest

from tests.support.processes.stalls import StalledError, ended_when_stalled

BUSY = "import time\nend = time.process_time() + 2\nwhile time.process_time() < end: pass"


def test_a_sleep_ends():
    started = time.monotonic()
    with pytest.raises(StalledError), ended_when_stalled(quiet=2, step=0.1):
        time.sleep(600)
    assert time.monotonic() - started < 300


def test_a_wait_for_a_child_that_sleeps_ends():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        with pytest.raises(StalledError), ended_when_stalled(quiet=2, step=0.1):
            child.wait()
        child.kill()


def test_work_in_a_child_is_progress():
    with ended_when_stalled(quiet=60, step=0.1):
        assert subprocess.run([sys.executable, "-c", BUSY]).returncode == 0
