"""Processes that do not outlive the one that started them, and whether they still make progress."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import psutil

STOP_SECONDS = 60
# runs a command once it is told to; ends where the process that would tell it has died
WHEN_TOLD = ["sh", "-c", 'read -r go && exec "$@"', "sh"]
# ends the group $1 once its standard input is closed, as it is however the process that holds it dies
WATCHDOG = """
read -r line
kill -s TERM -- "-$1"
for second in 1 2 3 4 5; do kill -s 0 -- "-$1" && sleep 1; done
kill -s KILL -- "-$1"
"""


@contextmanager
def own_session(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a session of its own; everything that it started ends with the block.

    A watchdog ends it where this process dies before, even by SIGKILL.
    """
    with log.open("w") as out:
        process = subprocess.Popen([*WHEN_TOLD, *command], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                                   env=environment, start_new_session=True)  # fmt: skip
    watched = ["sh", "-c", WATCHDOG, "watchdog", str(process.pid)]
    with subprocess.Popen(
        watched, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as watchdog:
        try:
            with cast(IO[bytes], process.stdin) as told:
                told.write(b"go\n")
            yield process
        finally:
            _end(process)
            watchdog.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process by SIGTERM, after a minute by SIGKILL; whatever it leaves of its group by SIGKILL."""
    try:
        process.terminate()
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"Process {process.pid} has not ended {STOP_SECONDS} s after SIGTERM and is killed.", file=sys.stderr)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tree(pid: int) -> list[psutil.Process]:
    """Process ``pid`` and all below it; nothing once it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """The CPU time of process ``pid`` and all below it, those that have ended included."""
    total = 0.0
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


class Progress:
    """Sees whether a process makes progress: its log grows, or its tree uses a second of CPU time."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid, self._log = pid, log
        self._size, self._cpu, self._moment = 0, 0.0, time.monotonic()

    def quiet_seconds(self) -> float:
        """The time since the last progress that a call has seen."""
        size, cpu = self._log.stat().st_size, cpu_seconds(self._pid)
        if size != self._size or abs(cpu - self._cpu) >= 1:
            self._size, self._cpu, self._moment = size, cpu, time.monotonic()
        return time.monotonic() - self._moment
