"""A real ``vllm serve`` process on loopback for demos, benchmarks and tests."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks.common.processes import Progress, own_session

CAPACITY = re.compile(r"KV cache size: ([\d,]+) tokens")
VLLM = Path(sys.executable).with_name("vllm")
QUIET_SECONDS, NOTICE_SECONDS = 180, 30
SHOWN = 4000  # characters of a log that explain a failure
# for a tiny model with others beside it: threads bound to cores would only wait for each other
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Server:
    """A server; ``log`` is the file with everything that it printed."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]

    def capacity_tokens(self) -> int:
        """The KV cache size that vLLM reported at start, in tokens."""
        found = CAPACITY.search(self.log.read_text(errors="replace"))
        if not found:
            raise RuntimeError(f"{self.log} reports no KV cache size.")
        return int(found.group(1).replace(",", ""))

    def printed(self) -> str:
        """The last lines of the log; not of a device, which may have none."""
        if not self.log.is_file():
            return str(self.log)
        text = self.log.read_text(errors="replace")
        return text if len(text) <= SHOWN else text[-SHOWN:].partition("\n")[2]

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (OSError, HTTPException):
            return False


_given = set[int]()


def free_port() -> int:
    """On loopback. None is given twice: who was given it may not listen yet."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


def wait_until_healthy(server: Server) -> None:
    """Waits as long as the server makes progress, and says so from time to time on standard error.

    Raises RuntimeError with the end of its log if it ends or makes none.
    """
    progress, started, noticed = Progress(server.process.pid, server.log), time.monotonic(), NOTICE_SECONDS
    while server.process.poll() is None and progress.quiet_seconds() < QUIET_SECONDS:
        if server.is_healthy():
            return
        if time.monotonic() > started + noticed:
            last = server.printed().rstrip().rpartition("\n")[2]
            print(f"Waiting for vllm serve {server.model} since {noticed} s: {last}", file=sys.stderr, flush=True)
            noticed += NOTICE_SECONDS
        time.sleep(0.5)
    ended = f"ended with {server.process.returncode}"
    quiet = f"did not answer, and for {QUIET_SECONDS} s it neither wrote to its log nor used a second of CPU time"
    raise RuntimeError(f"vllm serve {quiet if server.process.poll() is None else ended}:\n{server.printed()}")


@contextmanager
def starting(
    model: Path, arguments: Sequence[str] = (), pool_gib: int = 1, environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Server]:  # fmt: skip
    """Runs ``vllm serve MODEL`` with a KV pool of ``pool_gib`` GiB to the end of the block.

    ``environment`` replaces that of this process; without ``log`` a file that lasts as long as the server has it.
    """
    port = free_port()
    command = [str(VLLM), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    settings = {"VLLM_CPU_KVCACHE_SPACE": str(pool_gib), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryDirectory(prefix="vllm-serve-") as folder:
        file = log or Path(folder) / "log"
        inherited = os.environ if environment is None else environment
        with own_session(command, file, {**inherited, **settings}) as process:
            yield Server(f"http://127.0.0.1:{port}", str(model), file, process)


@contextmanager
def serve(model: Path, arguments: Sequence[str] = (), **options: Any) -> Iterator[Server]:
    """``starting``, once /health answers. Raises RuntimeError as ``wait_until_healthy`` does."""
    with starting(model, arguments, **options) as server:
        wait_until_healthy(server)
        yield server
