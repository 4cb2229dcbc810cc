"""Are drafts accepted as often over a compressed cache? ``python -m benchmarks.serving.drafts --model DIR``.

Every arm is served with the same drafter and answers the same chat prompts greedily, ``--batch`` at a time. Reported
are accepted drafts over proposed ones, tokens per step of a request, and tokens per second. Ratios are to the first
arm. The drafter is the model's own first ``--drafter-layers`` layers, or n-grams of the request with 0.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.common.chats import prompts
from benchmarks.common.metrics import metrics
from benchmarks.common.output import command_line, say
from benchmarks.common.server import serve
from benchmarks.serving.arms import Arm, make, parse_arms
from benchmarks.serving.asked import add_arms, run
from benchmarks.serving.drafts.distil import cut
from benchmarks.serving.peers import streamed

COUNTERS = "num_drafts", "num_draft_tokens", "num_accepted_tokens"


def drafting(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """vLLM's ``--speculative-config``."""
    told: dict[str, Any] = {"num_speculative_tokens": options.drafts}
    if options.drafter_layers == 0:
        return told | {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}
    drafter = cut(options.model, options.drafter_layers, scratch / "draft", options.distil, options.calib_data)
    return told | {"method": "draft_model", "model": str(drafter)}


def row_of(arm: Arm, asked: list[list[int]], told: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    flags = ["--dtype", options.dtype, "--max-model-len", "1024", "--max-num-seqs", str(options.batch)]
    flags += ["--enforce-eager", "--speculative-config", json.dumps(told), *arm.flags]
    with serve(arm.model, flags) as server, ThreadPoolExecutor(options.batch) as pool:
        streamed(server, asked[0], 2, time.perf_counter())  # what is made at the first request
        before, started = metrics(server.url), time.perf_counter()
        answers = list(pool.map(lambda ids: streamed(server, ids, options.tokens, started).tokens, asked))
        seconds, after = time.perf_counter() - started, metrics(server.url)
    steps, proposed, accepted = (
        after[name] - before.get(name, 0.0) for name in (f"vllm:spec_decode_{each}_total" for each in COUNTERS)
    )
    if not accepted:
        raise ValueError(
            f"{arm.name} accepted none of {proposed:.0f} drafts; give more --drafter-layers, --prompts or --tokens."
        )
    return {
        "arm": arm.name, "proposed": round(proposed), "accepted": round(accepted),
        "acceptance": round(accepted / proposed, 4), "tokens_per_step": round(1 + accepted / steps, 4),
        "tokens_per_second": round(sum(map(len, answers)) / seconds, 2),
    }  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    asked, rows = prompts(AutoTokenizer.from_pretrained(options.model), options.prompts), []
    with tempfile.TemporaryDirectory(prefix="palu-drafts-") as folder:
        scratch = Path(folder)
        told = drafting(options, scratch)
        for arm in parse_arms(options.arms.split(","), options.model, scratch):
            make(arm, options.model, options.calib_data)
            rows.append(row_of(arm, asked, told, options))
            say(rows[-1])
    for row in rows:
        row["times_acceptance"] = round(row["acceptance"] / rows[0]["acceptance"], 4)
    shown = "prompts", "tokens", "drafts", "drafter_layers", "distil", "batch", "dtype"
    return {"model": options.model.name, **{name: getattr(options, name) for name in shown}, "rows": rows}


def main() -> None:
    parser = command_line("benchmarks.serving.drafts", __doc__, "drafts.json")
    add_arms(parser, "dense,codec-4x")
    add = parser.add_argument
    add("--prompts", type=int, default=16)
    add("--tokens", type=int, default=48, help="of each answer")
    add("--drafts", type=int, default=3, help="tokens that are proposed at once")
    add("--drafter-layers", type=int, default=0, help="of the model that draft; 0: n-grams")
    add("--distil", type=int, default=0, help="steps for which these layers learn the model's predictions")
    add("--batch", type=int, default=8, help="prompts at a time")
    add("--dtype", default="float32")
    run(measure, parser.parse_args(), ("arm", "acceptance", "times_acceptance", "tokens_per_step", "tokens_per_second"))


if __name__ == "__main__":
    main()
