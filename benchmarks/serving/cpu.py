"""Time per decoded token of several arms on a CPU: ``python -m benchmarks.serving.cpu --arms dense,codec-4x``.

Every arm has a server of its own. All stay up and are asked in turn: ``--batch`` concurrent streams that each decode
``--tokens`` tokens behind ``--context`` tokens. The time per token of a stream is the time between its first and its
last token over the tokens between them. Ratios are of medians over the repeats, to the first arm.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openai import OpenAI
from transformers import AutoTokenizer

from benchmarks.common.output import command_line
from benchmarks.common.server import Server, serve
from benchmarks.common.shipped import HELD_OUT
from benchmarks.serving.arms import Arm, make, parse_arms
from benchmarks.serving.asked import add_arms, run


def stream_seconds_per_token(server: Server, prompt: list[int], tokens: int) -> float:
    """Seconds per token of one stream, the first token left out."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    stream = client.completions.create(
        model=server.model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    moments = [time.perf_counter() for _ in stream]
    return (moments[-1] - moments[0]) / (tokens - 1)


def batch_seconds_per_token(server: Server, prompts: list[list[int]], tokens: int) -> float:
    """Median over concurrent streams. A first round fills the prefix cache, so that no prefill runs between tokens.

    That takes prompts of one token more than whole blocks: vLLM computes the last block of a full hit again.
    """
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda prompt: stream_seconds_per_token(server, prompt, 2), prompts))
        return statistics.median(pool.map(lambda prompt: stream_seconds_per_token(server, prompt, tokens), prompts))


def distinct_prompts(options: argparse.Namespace) -> list[list[int]]:
    """``batch`` prompts of ``context + 1`` tokens of the text. Raises ValueError where it is too short."""
    ids = AutoTokenizer.from_pretrained(options.model).encode(options.text.read_text(encoding="utf-8"))
    length = options.context + 1
    if len(ids) < length * options.batch:
        raise ValueError(
            f"{options.text.name} has {len(ids)} tokens; expected {length} x {options.batch}: "
            "lower --context or --batch."
        )
    return [ids[i * length : (i + 1) * length] for i in range(options.batch)]


def flags(arm: Arm, options: argparse.Namespace) -> list[str]:
    longest = options.context + 1 + options.tokens
    eager = ["--enforce-eager"] if options.enforce_eager else []
    return ["--dtype", options.dtype, "--max-model-len", str(longest), *eager, *arm.flags]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    prompts = distinct_prompts(options)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palu-serving-")))
        arms = parse_arms(options.arms.split(","), options.model, scratch)
        servers = {}
        for arm in arms:
            make(arm, options.model, options.calib_data)
            print(f"{arm.name}: starting", file=sys.stderr, flush=True)
            servers[arm.name] = stack.enter_context(serve(arm.model, flags(arm, options), pool_gib=options.pool_gib))
        seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for _ in range(options.repeats):
            for name, server in servers.items():
                seconds[name].append(batch_seconds_per_token(server, prompts, options.tokens))
                print(f"{name}: {1e3 * seconds[name][-1]:.1f} ms per token", file=sys.stderr, flush=True)
    return {
        "model": options.model.name, "context": options.context, "batch": options.batch, "tokens": options.tokens,
        "dtype": options.dtype, "enforce_eager": options.enforce_eager, "rows": rows_of(seconds),
    }  # fmt: skip


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Milliseconds per token of every arm, and their ratio to the first arm's."""
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {"arm": name, "ms_per_token": round(medians[name], 2), "ratio": round(medians[name] / first, 3),
         "repeats_ms": [round(1e3 * value, 2) for value in values]}
        for name, values in seconds.items()
    ]  # fmt: skip


def main() -> None:
    parser = command_line("benchmarks.serving.cpu", __doc__, "serving_cpu.json")
    add_arms(parser, "dense,codec-4x,palu,palu-6x")
    add = parser.add_argument
    add("--text", type=Path, default=HELD_OUT, help="that is decoded from (default: the shipped held-out text)")
    add("--context", type=int, default=2048, help="tokens before the first decoded one")
    add("--batch", type=int, default=8, help="concurrent streams")
    add("--tokens", type=int, default=48, help="decoded by every stream")
    add("--repeats", type=int, default=3)
    add("--dtype", default="float32")
    add("--pool-gib", type=int, default=1, help="KV cache of every server")
    add("--enforce-eager", action="store_true", help="compile nothing: servers start faster")
    run(measure, parser.parse_args(), ("arm", "ms_per_token", "ratio"))


if __name__ == "__main__":
    main()
