"""Real vLLM for tests: engines in this process, and ``vllm serve`` processes on the loopback interface."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm import LLM, RequestOutput, SamplingParams

VLLM = Path(sys.executable).with_name("vllm")
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "block_size": 16,
    "num_gpu_blocks_override": 400,
    "seed": 0,
}


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[LLM]:
    """vLLM in this process with few, small blocks. One at a time: its end closes what vLLM has one of per process."""
    llm = LLM(str(model), **(SMALL | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def prompts(*lengths: int, salt: int = 0) -> list[list[int]]:
    """Token ids below 256, different in every request and for every salt."""
    return [
        [(31 * request + 7 * salt + 3 * token + token * token) % 256 for token in range(length)]
        for request, length in enumerate(lengths, start=1)
    ]


def outputs(llm: LLM, requests: Sequence[Sequence[int]], max_tokens: int) -> list[RequestOutput]:
    """What vLLM says about every request, decoded greedily, all submitted at once."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return llm.generate([{"prompt_token_ids": list(ids)} for ids in requests], params, use_tqdm=False)


def greedy(llm: LLM, requests: Sequence[Sequence[int]], max_tokens: int = 16) -> list[list[int]]:
    """The greedy continuation of every request, all submitted at once."""
    return [list(output.outputs[0].token_ids) for output in outputs(llm, requests, max_tokens)]


def attention_used(llm: LLM) -> set[tuple[str, str]]:
    """``{(backend, implementation)}`` over all layers of the loaded model."""

    def classes(model: Any) -> set[tuple[str, str]]:
        layers = [layer.self_attn.attn for layer in model.model.layers]
        return {(layer.attn_backend.get_name(), type(implementation(layer)).__name__) for layer in layers}

    return llm.apply_model(classes)[0]


def implementation(layer: Any) -> Any:
    return getattr(layer.impl, "attention", layer.impl)


class Server:
    """A running ``vllm serve`` process."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log


@contextmanager
def server(model: Path, log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """``vllm serve MODEL`` on a free port of the loopback interface; ended by its own process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(VLLM), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=outside(environment))
    running = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_healthy(running)
        yield running
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """SIGTERM; SIGKILL after a minute, to its children too."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for each in (process, *children):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        raise


def outside(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a user's shell: an engine in a process of its own, INFO printed."""
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", "TRITON_INTERPRET")
    return {name: value for name, value in os.environ.items() if name not in ours} | environment


def _tail(log: Path) -> str:
    """The end of a log; not of a device, which may have none."""
    return log.read_text()[-4000:] if log.is_file() else str(log)


def _wait_until_healthy(running: Server, seconds: int = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            pytest.fail(f"vllm serve ended with {running.process.returncode}:\n{_tail(running.log)}")
        try:
            with urllib.request.urlopen(f"{running.url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    pytest.fail(f"vllm serve was not healthy after {seconds} s:\n{_tail(running.log)}")
