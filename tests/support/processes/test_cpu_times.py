"""CPU seconds are counted for this process and for children, and summed by file."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.support.processes.cpu_times import Meter, by_file

BUSY = "import time\nwhile time.process_time() < 1: pass"


def test_a_child_counts_and_a_sleep_does_not():
    meter = Meter()
    time.sleep(0.5)
    assert meter.read() < 0.4
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert meter.read() >= 1
    assert meter.read() < 0.4


def test_reports_are_summed_by_file():
    reports = [
        SimpleNamespace(nodeid=f"{file}::test", cpu_seconds=number)
        for file, number in zip("aab", (1, 2, 4), strict=True)
    ]
    assert by_file(reports) == pytest.approx({"a": 3, "b": 4})
