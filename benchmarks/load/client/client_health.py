"""Is the client the bottleneck? Its CPU, and how late its event loop wakes up.

locust runs all users in one thread. Past about 80 % of a core, or when a sleep of 50 ms lasts much longer, chunks wait
in the socket and every time that is reported is the client's, not the server's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

CPU_LIMIT = 80.0  # percent of one core
LAG_LIMIT_MS = 50.0
NAP = 0.05
SAMPLE_SECONDS = 1.0


@dataclass
class ClientHealth:
    """Samples of a running client."""

    cpu_percent: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)

    def watch(self, stopped: Callable[[], bool]) -> None:
        """Samples until ``stopped``; to be run beside the users, with the sleep of their event loop."""
        process = psutil.Process()
        process.cpu_percent()
        sampled = time.perf_counter()
        while not stopped():
            before = time.perf_counter()
            time.sleep(NAP)
            now = time.perf_counter()
            self.lag_ms.append(1000 * max(0.0, now - before - NAP))
            if now - sampled >= SAMPLE_SECONDS:
                self.cpu_percent.append(process.cpu_percent())
                sampled = now


def judge_client(cpu_percent: Sequence[float], lag_ms: Sequence[float]) -> dict:
    """``saturated`` if a tenth of the seconds used more CPU than the limit or a tenth of the naps were late by more."""
    cpu = float(np.percentile(cpu_percent, 90)) if cpu_percent else 0.0
    lag = float(np.percentile(lag_ms, 90)) if lag_ms else 0.0
    reasons = []
    if cpu > CPU_LIMIT:
        reasons.append(f"The client used {cpu:.0f} % of a core (limit {CPU_LIMIT:.0f} %).")
    if lag > LAG_LIMIT_MS:
        reasons.append(f"The client's event loop was {lag:.0f} ms late (limit {LAG_LIMIT_MS:.0f} ms).")
    return {
        "saturated": bool(reasons),
        "reasons": reasons,
        "cpu_percent_p90": round(cpu, 1),
        "cpu_percent_mean": round(float(np.mean(cpu_percent)), 1) if cpu_percent else None,
        "loop_lag_ms_p90": round(lag, 2),
        "loop_lag_ms_max": round(max(lag_ms), 2) if lag_ms else None,
    }
