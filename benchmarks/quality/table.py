"""Quality against bytes per token: ``python -m benchmarks.quality.table [--model DIR] [--text FILE]``.

Perplexity and the Kullback-Leibler divergence from the dense model's next-token distribution, on the same rows of
held-out text, for the settings of ``quality_arms.py``. Bytes per token are those of the checkpoint's dtype.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.perplexity import HELD_OUT, rows_of, spread_rows
from benchmarks.quality.arms import BUDGETS, RATIOS, palu_arms, vllm_arms
from benchmarks.quality.plot import plot, tables
from benchmarks.quality.simulated_caches import ARMS, SimulatedCache
from palu_vllm.format.config import AttentionGeometry

RESULT = ROOT / "benchmarks" / "results" / "quality_table.json"
PLOT = ROOT / "docs" / "images" / "quality.png"
BATCH = 4  # rows


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, rows: torch.Tensor, make_cache: Callable | None) -> torch.Tensor:
    """Float32 ``[rows, context - 1, vocabulary]`` of the tokens after the first of ``rows [rows, context]``."""
    options = {"past_key_values": make_cache()} if make_cache else {}
    return model(rows, use_cache=True, **options).logits[:, :-1].float().log_softmax(-1)


class Judge:
    """Scores models on fixed rows against the dense model, whose distributions are kept in float16."""

    def __init__(self, dense: torch.nn.Module, rows: torch.Tensor) -> None:
        self.batches = rows.split(BATCH)
        self.dense = [log_probabilities(dense, batch, None).half() for batch in self.batches]

    def score(self, model: torch.nn.Module, make_cache: Callable | None = None) -> dict[str, float]:
        """Perplexity, and KL(dense || model) in nats per token."""
        loss, divergence, tokens = 0.0, 0.0, 0
        for batch, reference in zip(self.batches, self.dense, strict=True):
            found, reference = log_probabilities(model, batch, make_cache), reference.float()
            loss -= found.gather(-1, batch[:, 1:, None]).sum().item()
            divergence += (reference.exp() * (reference - found)).sum().item()
            tokens += batch[:, 1:].numel()
        return {"perplexity": round(math.exp(loss / tokens), 4), "kl": round(divergence / tokens, 5)}


def rows_of_text(model: Path, text: Path, context: int, limit: int) -> torch.Tensor:
    """Int64 ``[rows, context]``, spread evenly over the text; a shorter last row is left out."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = spread_rows(rows_of(ids, context, tokenizer.encode("")), limit)
    if not rows:
        sys.exit(f"{text} has {len(ids)} tokens; expected at least one row of --context {context}.")
    return torch.tensor(rows)


def scored(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per arm, the dense model first."""
    config = json.loads((options.model / "config.json").read_text())
    geometry, dtype = AttentionGeometry.from_hf_config(config), config.get("dtype") or config["torch_dtype"]
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    judge = Judge(dense, rows_of_text(options.model, options.text, options.context, options.rows))
    yield {"arm": "dense", "bytes_per_token": geometry.dense_bytes_per_token(dtype), **judge.score(dense)}
    for arm in ARMS:
        score = judge.score(dense, lambda arm=arm: SimulatedCache(arm))
        yield {"arm": arm.name, "bytes_per_token": arm.bytes_per_token(geometry)} | score
    yield from vllm_arms(options, geometry)
    for arm, model in palu_arms(options, dtype):
        yield arm | judge.score(model)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.table", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--calib-data", type=Path, default=CALIBRATION)
    parser.add_argument("--context", type=int, default=1024, help="tokens per row")
    parser.add_argument("--rows", type=int, default=16, help="rows of text to score, spread evenly over it")
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS)
    parser.add_argument(
        "--budgets", type=float, nargs="*", default=BUDGETS, help="as palu-compress --target-compression"
    )
    parser.add_argument("--calib-samples", type=int, default=16, help="as palu-compress --calib-samples")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file (default: that of the README)")
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    rows = []
    for row in scored(options):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    facts = {"context": options.context, "rows_of_text": options.rows, "text": options.text.name}
    facts["calibration_samples"] = options.calib_samples
    options.out.write_text(json.dumps({"rows": rows, **facts, "provenance": provenance()}, indent=1) + "\n")
    plot(rows, options.plot)
    print(tables(rows))


if __name__ == "__main__":
    main()
