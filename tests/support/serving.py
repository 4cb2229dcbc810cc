"""Real vLLM for tests: engines in this process, and ``vllm serve`` processes on the loopback interface."""

import gc
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm import LLM, RequestOutput, SamplingParams

from benchmarks.common.server import VLLM, Server, serve

__all__ = ["VLLM", "Server"]
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
    """vLLM in this process with few, small blocks. One at a time: its end closes what vLLM has one of per process.

    An engine unfreezes what ``tests/conftest.py`` has frozen, and then looks through all of it several times: most of
    the time of a tiny engine. Here it leaves that alone.
    """
    with patch.object(gc, "freeze", nothing), patch.object(gc, "unfreeze", nothing):
        llm = LLM(str(model), **(SMALL | options))
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()


def nothing() -> None:
    """Stands for a function that must do nothing for a while."""


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
        layers = [module for module in model.modules() if hasattr(module, "attn_backend")]
        return {(layer.attn_backend.get_name(), type(implementation(layer)).__name__) for layer in layers}

    return llm.apply_model(classes)[0]


def implementation(layer: Any) -> Any:
    return getattr(layer.impl, "attention", layer.impl)


@contextmanager
def server(model: Path, log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """``vllm serve MODEL`` on a free port of the loopback interface, once it is healthy; it ends when it is told to."""
    with serve(model, arguments, environment=outside(environment), log=log) as running:
        yield running
    assert running.process.returncode != -signal.SIGKILL, f"vllm serve did not end:\n{running.printed()}"


def outside(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a user's shell: an engine in a process of its own, INFO printed, to standard output.

    Benchmarks that a test has called in this process leave variables behind.
    """
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM", "TRITON_INTERPRET")
    return {name: value for name, value in os.environ.items() if name not in ours} | environment
