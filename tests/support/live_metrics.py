"""What tests ask a live server: its metrics, its processes, and to wait until something is so."""

import re
import time
import urllib.request
from collections.abc import Callable

import psutil

from tests.support.processes.stalls import PATIENCE
from tests.support.serving import Server


def get(url: str, key: str | None = None) -> str:
    """The body of a GET; raises urllib's HTTPError for any status but 2xx."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.read().decode()


def metrics(running: Server, key: str | None = None) -> dict[str, float]:
    """``{name: value}`` of every sample at ``/metrics``, sums over labels."""
    found: dict[str, float] = {}
    for line in get(f"{running.url}/metrics", key).splitlines():
        if not line.startswith("#"):
            name = re.match(r"[\w:]+", line)[0]
            found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return found


def in_use(running: Server) -> tuple[float, float, float]:
    """Requests that run, requests that wait, and the share of the cache that they hold."""
    found = metrics(running)
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return tuple(found[name] for name in names)


def descendants(running: Server) -> list[psutil.Process]:
    """Every process that the server started, of this server only."""
    return psutil.Process(running.process.pid).children(recursive=True)


def engine_process(running: Server) -> psutil.Process:
    """The one EngineCore of a server."""
    (found,) = [child for child in descendants(running) if "EngineCore" in " ".join([child.name(), *child.cmdline()])]
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a process that ended and that nobody has waited for does not."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether ``condition`` becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return condition()
