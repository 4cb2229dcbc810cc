"""One measured load: requests sent at once to one server by ``vllm bench serve``, its metrics watched meanwhile."""

import argparse
import asyncio
import io
import threading
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from benchmarks.common.server import Server
from benchmarks.load.soak.server_state import metrics

WATCH_SECONDS = 0.1
RUNNING, PREEMPTIONS = "vllm:num_requests_running", "vllm:num_preemptions_total"
KEPT = ("completed", "failed", "duration", "total_input_tokens", "total_output_tokens", "output_throughput",
        "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms")  # fmt: skip


@dataclass(frozen=True)
class Load:
    """``requests`` of ``context`` random tokens, all at once, each answered with ``output`` tokens."""

    context: int
    output: int
    requests: int
    seed: int

    def flags(self, server: Server) -> list[str]:
        """Of ``vllm bench serve``. Its ready check would send the first prompt twice."""
        return [
            "--backend", "openai", "--base-url", server.url, "--model", server.model,
            "--dataset-name", "random", "--random-input-len", str(self.context),
            "--random-output-len", str(self.output), "--num-prompts", str(self.requests), "--seed", str(self.seed),
            "--ignore-eos", "--temperature", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm",
            "--percentile-metrics", "ttft,tpot",
        ]  # fmt: skip


class Watched:
    """Within a ``with``: the most requests that ran at the same time, and preemptions."""

    def __init__(self, server: Server) -> None:
        self.server, self.peak_running, self.preemptions = server, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watched":
        self._before = metrics(self.server.url)[PREEMPTIONS]
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.preemptions = int(metrics(self.server.url)[PREEMPTIONS] - self._before)

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            self.peak_running = max(self.peak_running, int(metrics(self.server.url)[RUNNING]))


def bench_serve(flags: list[str]) -> dict[str, Any]:
    """What ``vllm bench serve`` reports, run silently in this process, which has imported vLLM once for all cells."""
    from vllm.benchmarks.serve import add_cli_args, main_async

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    with redirect_stdout(io.StringIO()):
        return asyncio.run(main_async(parser.parse_args(flags)))


def measure(server: Server, load: Load) -> dict[str, Any]:
    """Raises RuntimeError where a request fails: numbers of the others would mean nothing."""
    with Watched(server) as watched:
        result = bench_serve(load.flags(server))
    if result["completed"] != load.requests:
        raise RuntimeError(f"{load.requests - result['completed']} of {load.requests} requests failed at {server.url}.")
    return {
        "context": load.context, "output": load.output, "requests": load.requests, "seed": load.seed,
        **{name: result[name] for name in KEPT},
        "peak_running": watched.peak_running, "preemptions": watched.preemptions,
    }  # fmt: skip
