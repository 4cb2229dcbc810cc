"""The judge of compressed models: how far they are from the dense one on rows of held-out text, by transformers."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.common.shipped import CALIBRATION_SAMPLES, HELD_OUT, MODEL
from benchmarks.perplexity import rows_of, spread_rows

BATCH = 4  # rows


def load(model: Path) -> PreTrainedModel:
    """A dense or compressed checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Float32 ``[rows, context - 1, vocabulary]`` of the tokens after the first of ``rows [rows, context]``."""
    return model(rows, use_cache=True).logits[:, :-1].float().log_softmax(-1)


class Judge:
    """Scores models on fixed rows against the dense model, whose distributions are kept in float16."""

    def __init__(self, dense: torch.nn.Module, rows: torch.Tensor) -> None:
        self.batches = rows.split(BATCH)
        self.dense = [log_probabilities(dense, batch).half() for batch in self.batches]

    def score(self, model: torch.nn.Module) -> dict[str, float]:
        """Perplexity, and KL(dense || model) in nats per token."""
        loss, divergence, tokens = 0.0, 0.0, 0
        for batch, reference in zip(self.batches, self.dense, strict=True):
            found, reference = log_probabilities(model, batch), reference.float()
            loss -= found.gather(-1, batch[:, 1:, None]).sum().item()
            divergence += (reference.exp() * (reference - found)).sum().item()
            tokens += batch[:, 1:].numel()
        return {"perplexity": round(math.exp(loss / tokens), 4), "kl": round(divergence / tokens, 5)}

    def score_checkpoint(self, checkpoint: Path) -> dict[str, float]:
        return self.score(load(checkpoint))


def rows_of_text(model: Path, text: Path, context: int, limit: int) -> torch.Tensor:
    """Int64 ``[rows, context]``, spread evenly over the text; a shorter last row is left out."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = spread_rows(rows_of(ids, context, tokenizer.encode("")), limit)
    if not rows:
        sys.exit(f"{text} has {len(ids)} tokens; expected at least one row of --context {context}.")
    return torch.tensor(rows)


def add_options(parser: argparse.ArgumentParser, rows: int = 12) -> None:
    """``--rows``, ``--context`` and ``--calib-samples``."""
    add = parser.add_argument
    add("--rows", type=int, default=rows, help="rows of held-out text to score, spread evenly over it")
    add("--context", type=int, default=1024, help="tokens per row")
    add("--calib-samples", type=int, default=CALIBRATION_SAMPLES, help="as palu-compress --calib-samples")


def judge_of(options: argparse.Namespace) -> tuple[Judge, dict[str, Any]]:
    """The judge, and what has to be equal for two results to be compared: the dense model's score and these options."""
    dense = load(MODEL)
    judge = Judge(dense, rows_of_text(MODEL, HELD_OUT, options.context, options.rows))
    facts = {"dense": judge.score(dense), "context": options.context, "rows_of_text": options.rows}
    return judge, facts | {"calibration_samples": options.calib_samples}
