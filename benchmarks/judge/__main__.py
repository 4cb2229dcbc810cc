"""Judges caches on a real model: ``python -m benchmarks.judge --folder DIR``, DIR made by ``benchmarks.real_models``.

Each arm gets a row: bytes as stored, KL from the dense model, equal top tokens, perplexity, greedy agreement, needles.
A run goes on where another one stopped. palu's checkpoints are the directories in ``--checkpoints``.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.chats import prompts
from benchmarks.common.output import say
from benchmarks.judge.agreement import agreement, mastered, needles, retrieval
from benchmarks.judge.arms.arm import Arm, Heads
from benchmarks.judge.asked import options_of, rows_asked
from benchmarks.judge.divergence import Reference, summaries
from benchmarks.judge.registry import arms
from benchmarks.judge.report import write_report
from benchmarks.judge.rows import ResultFile
from benchmarks.judge.texts import dense_answers, load_tokenizer

LONG = 32768  # tokens, where windows and sinks are next to nothing
DEPTHS = [0.1, 0.3, 0.5, 0.7, 0.9]
Measure = Callable[[torch.nn.Module], dict[str, Any]]


def parser_of() -> argparse.ArgumentParser:
    parser = options_of("benchmarks.judge", __doc__)
    add = parser.add_argument
    add(
        "--checkpoints",
        type=Path,
        help="a folder of checkpoints and codecs, a directory each (default: NAME-palu in the folder)",
    )
    add("--prompts", type=int, default=50, help="chat prompts whose answers are compared; 0 leaves them out")
    add("--answer-tokens", type=int, default=64, help="of each answer")
    add("--needle-contexts", type=int, nargs="*", default=[1024], help="tokens around a needle; none leaves them out")
    add("--arms", nargs="+", help="only those whose names contain one of these")
    add("--report-only", action="store_true", help="table, plot and page of the rows there are")
    return parser


def measures(dense: torch.nn.Module, options: argparse.Namespace) -> tuple[dict[str, Callable[[], Measure]], dict]:
    """Each by the field that says it is done, made when it is needed; and the facts of all."""
    tokenizer = load_tokenizer(options.model)
    texts, facts = rows_asked(options)
    asked = prompts(tokenizer, options.prompts)

    def divergence() -> Measure:
        reference = Reference(dense, texts.ids)
        return lambda model: summaries(reference.per_token(model), texts.kinds)

    def answers() -> Measure:
        cached = options.out.with_suffix(".answers.json")
        given = dense_answers(dense, asked, options.answer_tokens, cached)
        return lambda model: agreement(model, asked, given)

    def found() -> Measure:
        text = tokenizer.encode((options.folder / "wiki_evaluation.txt").read_text(), add_special_tokens=False)
        hidden = mastered(dense, needles(tokenizer, text, options.needle_contexts, DEPTHS))
        return lambda model: retrieval(model, hidden)

    chosen = {"kl": divergence}
    chosen |= {"agreed_tokens": answers} if options.prompts else {}
    chosen |= {"needles": found} if options.needle_contexts else {}
    return chosen, facts


def judge(dense: torch.nn.Module, chosen: list[Arm], options: argparse.Namespace) -> ResultFile:
    """Measures what the file lacks, one measure after another over all arms."""
    by_field, facts = measures(dense, options)
    result, heads = ResultFile(options.out, facts), Heads.of(dense.config)
    for field, make in by_field.items():
        missing = [arm for arm in chosen if not result.has(arm.name, field)]
        measure = make() if missing else None
        for arm in missing:
            started = time.monotonic()
            with arm.applied(dense) as model:
                measured = measure(model) if measure else {}
            result.add(arm.name, sizes(arm, heads, options.context) | measured)
            say({"arm": arm.name, field: measured.get(field), "seconds": round(time.monotonic() - started, 1)})
    return result


def sizes(arm: Arm, heads: Heads, context: int) -> dict[str, Any]:
    """At the end of a row, and of a long context."""
    held = [arm.bytes_per_token(heads, tokens) for tokens in (context, LONG)]
    return {
        "simulated": arm.simulated,
        "bytes_per_token": round(held[0], 1),
        "times_fewer_bytes": round(heads.dense_bytes / held[0], 3),
        "times_fewer_bytes_long": round(heads.dense_bytes / held[1], 3),
    }


def main() -> None:
    options = parser_of().parse_args()
    options.model = options.model or options.folder / "smollm2"
    options.checkpoints = options.checkpoints or options.model.with_name(f"{options.model.name}-palu")
    if not options.report_only:
        chosen = [arm for arm in arms(options.checkpoints)
                  if not options.arms or any(part in arm.name for part in options.arms)]  # fmt: skip
        dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        judge(dense, chosen, options)
    print(write_report(options.out))


if __name__ == "__main__":
    main()
