"""Prompts computed by one server and decoded by another: ``python -m benchmarks.serving.disaggregated``.

Every arm has two servers that NIXL joins, and one server alone that says what the tokens must be. Reported are whether
they are the same, bytes that moved per token of the prompts, and the time to the first token. Ratios are to the first
arm. All servers are on this machine, so blocks cross memory and no network.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.output import command_line, say
from benchmarks.common.server import serve
from benchmarks.common.shipped import HELD_OUT
from benchmarks.serving.arms import Arm, make, parse_arms
from benchmarks.serving.asked import add_arms, run
from benchmarks.serving.cpu import distinct_prompts
from benchmarks.serving.peers import Answer, pair, streamed


def rows_of(arm: Arm, prompts: Sequence[list[int]], options: argparse.Namespace) -> dict[str, Any]:
    """Asks both ways, one request at a time, and compares."""
    longest = str(options.context + 1 + options.tokens)
    flags = ["--dtype", options.dtype, "--max-model-len", longest, "--enforce-eager", *arm.flags]
    flags += ["--no-enable-prefix-caching"]
    with serve(arm.model, flags, pool_gib=options.pool_gib) as server:
        alone = [streamed(server, prompt, options.tokens, time.perf_counter()) for prompt in prompts]
    with pair(arm.model, [flags, flags], options.pool_gib) as servers:
        warm = servers.ask(prompts[0][: options.context // 2], 2)  # the handshake
        before = servers.bytes_moved()
        apart = [servers.ask(prompt, options.tokens) for prompt in prompts]
        moved = servers.bytes_moved() - before
    same = sum(one.tokens == other.tokens for one, other in zip(alone, apart, strict=True))
    return {
        "arm": arm.name, "answers": len(apart), "answers_that_are_the_same": same,
        "bytes_per_token": round(moved / sum(map(len, prompts)), 1),
        "first_token_ms": median_ms(apart), "first_token_of_one_server_ms": median_ms(alone),
        "first_token_of_handshake_ms": round(1e3 * warm.first_token, 1),
    }  # fmt: skip


def median_ms(answers: Sequence[Answer]) -> float:
    return round(1e3 * statistics.median(answer.first_token for answer in answers), 1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    prompts, rows = distinct_prompts(options), []
    with tempfile.TemporaryDirectory(prefix="palu-disaggregated-") as scratch:
        for arm in parse_arms(options.arms.split(","), options.model, Path(scratch)):
            make(arm, options.model, options.calib_data)
            print(f"{arm.name}: three servers", file=sys.stderr, flush=True)
            rows.append(rows_of(arm, prompts, options))
            say(rows[-1])
    for row in rows:
        row["times_fewer_bytes"] = round(rows[0]["bytes_per_token"] / row["bytes_per_token"], 2)
        row["times_first_token"] = round(row["first_token_ms"] / rows[0]["first_token_ms"], 3)
    facts = {"model": options.model.name, "context": options.context, "tokens": options.tokens, "dtype": options.dtype}
    return facts | {"rows": rows}


def main() -> None:
    parser = command_line("benchmarks.serving.disaggregated", __doc__, "disaggregated.json")
    add_arms(parser, "dense,codec-4x")
    add = parser.add_argument
    add("--text", type=Path, default=HELD_OUT, help="that prompts are cut from (default: the shipped held-out text)")
    add("--context", type=int, default=1024, help="tokens of a prompt, and one more")
    add("--batch", type=int, default=8, help="prompts, one at a time")
    add("--tokens", type=int, default=16, help="decoded behind each")
    add("--dtype", default="bfloat16")
    add("--pool-gib", type=int, default=1, help="KV cache of every server")
    run(
        measure,
        parser.parse_args(),
        ("arm", "answers_that_are_the_same", "bytes_per_token", "times_fewer_bytes", "first_token_ms"),
    )


if __name__ == "__main__":
    main()
