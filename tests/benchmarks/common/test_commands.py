"""Commands in processes of their own: what they print, what they refuse, and their end with the one that asked."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.common.commands import CommandError, compress, run
from benchmarks.common.provenance import ROOT

WAITING = """
from benchmarks.common.commands import run
from benchmarks.common.output import command_line
command_line("waiting", "Waits.")
run("timeit", "-s", "open({file!r}, 'w').close()", "-n", "1", "-r", "1", "__import__('time').sleep(500)")
"""


def test_what_a_command_prints():
    assert run("calendar", 2026, 11).split()[:2] == ["November", "2026"]


def test_command_that_fails_is_quoted():
    with pytest.raises(CommandError, match="^calendar.py: error: unrecognized arguments: 3 4$"):
        run("calendar", 1, 2, 3, 4)


def test_compression_that_is_refused_is_one_sentence(tmp_path):
    with pytest.raises(CommandError, match="^palu-compress: rank ratio 7.0 is outside [^\n]*$"):
        compress(tmp_path / "out", "--rank-ratio", 7)


def test_command_ends_with_the_one_that_asked(tmp_path: Path):
    file = tmp_path / "started"
    parent = subprocess.Popen([sys.executable, "-c", WAITING.format(file=str(file))], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 128 + signal.SIGTERM
    assert children and not psutil.wait_procs(children, 30)[1]
