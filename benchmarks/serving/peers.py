"""Two servers of one model, one that computes prompts and one that decodes behind them, joined by NIXL.

What a router does between the two is done here by the client, request by request: the first server is asked for one
token and answers where its blocks lie, and the second is told so. vLLM's documentation calls them P and D.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from benchmarks.common.metrics import metrics
from benchmarks.common.processes import tree
from benchmarks.common.server import ONE_THREAD, Server, free_port, starting, wait_until_healthy

TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
ASK_FOR_BLOCKS = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
    "remote_host": None, "remote_port": None,
}  # fmt: skip
MOVED = "vllm:nixl_bytes_transferred_sum"


@dataclass(frozen=True)
class Answer:
    """``first_token`` in seconds since the request was sent to the first server."""

    tokens: list[int]
    first_token: float


@dataclass(frozen=True)
class Pair:
    prefill: Server
    decode: Server

    def ask(self, prompt: Sequence[int], tokens: int) -> Answer:
        """Raises openai.APIError for what either server refuses."""
        started = time.perf_counter()
        request = {"kv_transfer_params": ASK_FOR_BLOCKS}
        computed = client(self.prefill).completions.create(
            model=self.prefill.model, prompt=list(prompt), max_tokens=1, temperature=0, extra_body=request
        )
        where = computed.model_extra["kv_transfer_params"]
        return streamed(self.decode, prompt, tokens, started, {"kv_transfer_params": where})

    def bytes_moved(self) -> int:
        """By the metrics of the server that decodes, since its start."""
        return round(metrics(self.decode.url).get(MOVED, 0.0))


def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def streamed(
    server: Server, prompt: Sequence[int], tokens: int, started: float, extra: dict[str, Any] | None = None
) -> Answer:
    """Greedy tokens of one server, which may not end early."""
    body = {"ignore_eos": True, "return_token_ids": True, **(extra or {})}
    stream = client(server).completions.create(
        model=server.model, prompt=list(prompt), max_tokens=tokens, temperature=0, stream=True, extra_body=body
    )
    found, first = list[int](), 0.0
    for chunk in stream:
        new = [token for choice in chunk.choices for token in (choice.model_extra or {}).get("token_ids") or []]
        if new and not found:
            first = time.perf_counter() - started
        found += new
    return Answer(found, first)


@contextmanager
def pair(
    model: Path, flags: Sequence[Sequence[str]], pool_gib: int = 1, transfer: Mapping[str, Any] = TRANSFER
) -> Iterator[Pair]:
    """Both servers of ``model``, each with its ``flags``, once they answer. Raises RuntimeError where one does not.

    Each has one thread for its model, and cores of its own: see ``spread``. ``transfer`` is ``--kv-transfer-config``.
    """
    with ExitStack() as stack:
        servers = []
        for own in flags:
            environment = os.environ | ONE_THREAD | {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
            arguments = [*own, "--kv-transfer-config", json.dumps(transfer)]
            servers.append(stack.enter_context(starting(model, arguments, pool_gib, environment)))
        for server in servers:
            wait_until_healthy(server)
        for turn, server in enumerate(servers):
            spread(server, sorted(os.sched_getaffinity(0))[turn :: len(servers)])
        yield Pair(*servers)


def spread(server: Server, cores: Sequence[int]) -> None:
    """Moves every thread of a server to ``cores``; where there are none, they stay.

    vLLM binds whoever moves blocks on a CPU to the last core of the machine. NIXL's threads spin there, those of one
    server keep the other's from running, and requests outlast vLLM's lease of blocks.
    """
    for process in tree(server.process.pid) if cores else []:
        for thread in process.threads():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread.id, cores)
