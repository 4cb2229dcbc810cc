"""A real ``vllm serve`` process on loopback for demos, benchmarks and tests; ended by its own process id."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CAPACITY = re.compile(r"KV cache size: ([\d,]+) tokens")


@dataclass(frozen=True)
class Server:
    """A server that answers; ``log`` is the file with everything it printed."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen

    def capacity_tokens(self) -> int:
        """The KV cache size that vLLM reported at start, in tokens."""
        found = CAPACITY.search(self.log.read_text(errors="replace"))
        if not found:
            raise RuntimeError(f"{self.log} reports no KV cache size.")
        return int(found.group(1).replace(",", ""))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def vllm_command() -> str:
    """The ``vllm`` command of the running interpreter's environment."""
    return str(Path(sys.executable).parent / "vllm")


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(
                f"vllm serve ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vllm serve did not answer within {seconds:.0f} s:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def serve(
    model: Path, arguments: Sequence[str] = (), pool_gib: float = 1, environment: dict[str, str] | None = None,
    start_seconds: float = 300,
) -> Iterator[Server]:  # fmt: skip
    """Runs ``vllm serve MODEL`` with a KV pool of ``pool_gib`` GiB and yields it once /health answers.

    Raises RuntimeError with the end of the server's log if it ends or stays silent.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [vllm_command(), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    settings = {"VLLM_CPU_KVCACHE_SPACE": str(pool_gib), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.NamedTemporaryFile("w", prefix="vllm-serve-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings | (environment or {})
        )
    path = Path(log.name)
    try:
        _wait_until_healthy(url, process, path, start_seconds)
        yield Server(url, str(model), path, process)
    finally:
        _stop(process)
        path.unlink()
