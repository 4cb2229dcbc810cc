"""The shipped model's held-out text as a judge of compressed models: shared options, and what a result says of them."""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.demo import MODEL
from benchmarks.perplexity import HELD_OUT
from benchmarks.quality.table import Judge, rows_of_text


def add_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """``--rows``, ``--context``, ``--calib-samples`` and ``--out``."""
    parser.add_argument("--rows", type=int, default=12, help="rows of held-out text to score, spread evenly over it")
    parser.add_argument("--context", type=int, default=1024, help="tokens per row")
    parser.add_argument("--calib-samples", type=int, default=16, help="as palu-compress --calib-samples")
    parser.add_argument("--out", type=Path, default=out)


def judge_of(options: argparse.Namespace) -> tuple[Judge, dict[str, Any]]:
    """The judge, and what has to be equal for two results to be compared: the dense model's score and these options."""
    dense = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    judge = Judge(dense, rows_of_text(MODEL, HELD_OUT, options.context, options.rows))
    facts = {"dense": judge.score(dense), "context": options.context, "rows_of_text": options.rows}
    return judge, facts | {"calibration_samples": options.calib_samples}
