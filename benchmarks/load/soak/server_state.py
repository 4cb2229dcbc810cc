"""What a running server says about itself, and the memory of its processes."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.common.metrics import metrics
from benchmarks.common.processes import tree


@dataclass(frozen=True)
class Sample:
    """``second`` is that of the run; ``rss_bytes`` of the whole tree of processes; usage is a share of all blocks."""

    second: float
    rss_bytes: int
    running: float
    waiting: float
    cache_usage: float
    preemptions: float


def tree_rss(pid: int) -> int:
    """Resident bytes of process ``pid`` and all below it, pages that they share counted in each."""
    total = 0
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def sample_of(second: float, rss_bytes: int, found: Mapping[str, float]) -> Sample:
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total")
    return Sample(second, rss_bytes, *(found[f"vllm:{name}"] for name in names))


def idle(sample: Sample) -> bool:
    """No request, and no block held by one. Blocks that only the prefix cache remembers are free."""
    return sample.running == sample.waiting == sample.cache_usage == 0


def sample_when_idle(url: str, pid: int, seconds: float) -> Sample:
    """A sample once the server is idle, or what it was like when ``seconds`` had passed."""
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        last = sample_of(passed, tree_rss(pid), metrics(url))
        if idle(last) or passed > seconds:
            return last
        time.sleep(0.5)
