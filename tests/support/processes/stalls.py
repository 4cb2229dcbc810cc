"""Tests end when they make no progress, not when a busy machine makes them slow."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.common.processes import cpu_seconds

PATIENCE = 240.0  # seconds for what takes less than 30 on a quiet machine: eight times busier must pass
QUIET_SECONDS, STEP_SECONDS = 180.0, 10.0


class StalledError(Exception):
    """Neither this process nor any that it started has worked for a while."""


def _stalled(*_: object) -> None:
    raise StalledError("For three minutes no process of this test used a second of CPU time; it waits for nothing.")


def _watch(over: threading.Event, quiet: float, step: float) -> None:
    """Sends SIGUSR1 to the main thread once CPU time has stood still; ends with ``over``."""
    used, moment = cpu_seconds(os.getpid()), time.monotonic()
    while not over.wait(step):
        now = cpu_seconds(os.getpid())
        if abs(now - used) >= min(1, quiet / 4):
            used, moment = now, time.monotonic()
        elif time.monotonic() - moment > quiet:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            return


@contextmanager
def ended_when_stalled(quiet: float = QUIET_SECONDS, step: float = STEP_SECONDS) -> Iterator[None]:
    """Raises StalledError in the block, in the main thread, once nothing has worked for ``quiet`` seconds."""
    over, before = threading.Event(), signal.signal(signal.SIGUSR1, _stalled)
    watching = threading.Thread(target=_watch, args=(over, quiet, step), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGUSR1, before)
