"""Arms of one model as real servers with equal bytes of KV cache, measured side by side.

``python -m benchmarks.serving --arms dense,fp8,codec-4x,palu-6x`` makes codecs and checkpoints, starts every arm, and
for each context sends to each arm first as many requests as its own pool holds, then, repeated and in turn, the same
load to all. Writes JSON, one HTML page, and a picture.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.common import commands
from benchmarks.common.output import RESULTS, command_line
from benchmarks.common.provenance import provenance
from benchmarks.common.server import Server, serve
from benchmarks.common.shipped import HELD_OUT
from benchmarks.serving.arms import Arm, make, parse_arms, why_missing
from benchmarks.serving.asked import add_arms
from benchmarks.serving.cell import Load, measure
from benchmarks.serving.plots import comparison
from benchmarks.serving.pool import bytes_per_token, contexts_held, equal_pool
from benchmarks.serving.report import page
from benchmarks.serving.summary import Row, held_ratios, summarise

MAX_REQUESTS = 512


@dataclass(frozen=True)
class Started:
    """An arm whose server answers."""

    arm: Arm
    server: Server
    facts: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = command_line("benchmarks.serving", __doc__)
    add_arms(made, "dense,fp8,codec-4x,palu-6x")
    made.add_argument("--text", type=Path, default=HELD_OUT, help="for perplexity (default: the shipped held-out text)")
    made.add_argument(
        "--pool-mib", type=float, default=48, help="bytes of KV cache of every arm (default: %(default)s)"
    )
    made.add_argument("--contexts", default="1024,2048", help="prompt tokens, by comma (default: %(default)s)")
    made.add_argument("--output", type=int, default=64, help="tokens per answer (default: %(default)s)")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--block-size", type=int, default=32)
    made.add_argument("--dtype", default="float16")
    made.add_argument("--enforce-eager", action="store_true", help="compile nothing: servers start faster")
    made.add_argument("--dummy", action="store_true", help="random weights: speed only, no quality")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--out", type=Path, default=RESULTS / "serving", help="without ending; .json, .html and .png are added"
    )
    return made


def longest_request(options: argparse.Namespace) -> int:
    """In tokens, of whole blocks: vLLM reports its capacity as a number of such requests."""
    tokens = max(map(int, options.contexts.split(","))) + options.output
    return -(-tokens // options.block_size) * options.block_size


def common_flags(options: argparse.Namespace, arm: Arm) -> list[str]:
    """What all arms are started with, and the arm's own."""
    longest = str(longest_request(options))
    flags = ["--dtype", options.dtype, "--max-model-len", longest, "--max-num-seqs", str(MAX_REQUESTS),
             "--block-size", str(options.block_size), "--no-enable-prefix-caching"]  # fmt: skip
    flags += ["--enforce-eager"] if options.enforce_eager else []
    return [*flags, *(("--load-format", "dummy") if options.dummy else ()), *arm.flags]


def perplexity(arm: Arm, options: argparse.Namespace) -> float:
    """On held-out text, through vLLM with the arm's cache."""
    asked = ["--kv-cache-dtype", arm.cache_dtype, "--dtype", options.dtype, "--limit", 16, "--spread"]
    coded = ["--codec", arm.codec] if arm.codec else []
    return commands.perplexity(arm.model, *asked, *coded, text=options.text)["perplexity"]


def start(arm: Arm, options: argparse.Namespace, stack: ExitStack) -> Started:
    """Starts the arm's server with its share of bytes. Raises RuntimeError where vLLM does not serve it."""
    print(f"{arm.name}: starting", file=sys.stderr)
    make(arm, options.model, options.calib_data)
    flags, pool = common_flags(options, arm), round(options.pool_mib * 2**20)
    size = bytes_per_token(arm.model, flags)
    server = stack.enter_context(serve(arm.model, [*flags, *equal_pool(pool, size, options.block_size)]))
    facts = {"bytes_per_token": size, "capacity_tokens": server.capacity_tokens(), "flags": arm.said_flags}
    return Started(arm, server, facts if options.dummy else facts | {"perplexity": perplexity(arm, options)})


def measure_context(started: list[Started], context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per arm. Repeats go round the arms, so that a slow minute of the machine meets all of them."""
    tokens = context + options.output
    held = [min(contexts_held(each.facts["capacity_tokens"], options.block_size, tokens), MAX_REQUESTS)
            for each in started]  # fmt: skip
    own: list[Row] = []
    repeats: list[list[Row]] = [[] for _ in started]
    for each, requests in zip(started, held, strict=True):
        own.append(measure(each.server, Load(context, options.output, requests, options.seed)))
        print(
            f"{each.arm.name}, {context} tokens: {requests} requests, {own[-1]['preemptions']} preemptions",
            file=sys.stderr,
        )
    for repeat in range(1, options.repeats + 1):
        for each, rows in zip(started, repeats, strict=True):
            rows.append(measure(each.server, Load(context, options.output, max(held), options.seed + repeat)))
            print(f"{each.arm.name}, {context} tokens: {rows[-1]['output_throughput']:.1f} tokens/s", file=sys.stderr)
    return [summarise(each.arm.name, first, rows) for each, first, rows in zip(started, own, repeats, strict=True)]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, ready for JSON. An arm that does not start is ``missing`` with the reason."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palu-serving-")))
        started, arms = [], {}
        for arm in parse_arms(options.arms.split(","), options.model, scratch):
            try:
                started.append(start(arm, options, stack))
                arms[arm.name] = started[-1].facts
            except RuntimeError as error:
                arms[arm.name] = {"missing": why_missing(error)}
                print(f"{arm.name}: missing, {arms[arm.name]['missing']}", file=sys.stderr)
        rows = [
            row for context in options.contexts.split(",") for row in measure_context(started, int(context), options)
        ]
    return {
        "model": options.model.name, "pool_bytes": round(options.pool_mib * 2**20), "output": options.output,
        "block_size": options.block_size, "dtype": options.dtype, "enforce_eager": options.enforce_eager,
        "on_cpu": not torch.cuda.is_available(),
        "arms": arms, "rows": rows, "held_over_dense": held_ratios(rows), "provenance": provenance(),
    }  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Raises ValueError with one sentence for options that cannot be measured."""
    parse_arms(options.arms.split(","), options.model, Path())
    longest = longest_request(options)
    limit = AutoConfig.from_pretrained(options.model).max_position_embeddings
    if longest > limit:
        raise ValueError(
            f"contexts and output reach {longest} tokens in whole blocks, the model's limit is {limit}; "
            "lower --contexts."
        )


def main() -> None:
    options = parser().parse_args()
    try:
        check(options)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    result = compare(options)
    png = comparison(result["rows"])
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".html").write_text(page(result, png))
    options.out.with_suffix(".png").write_bytes(png)
    print(json.dumps(result["held_over_dense"], indent=1))


if __name__ == "__main__":
    main()
