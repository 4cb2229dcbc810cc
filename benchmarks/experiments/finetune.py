"""What ``palu-finetune`` wins back: ``python -m benchmarks.experiments.finetune``.

The shipped model is compressed, judged, fine-tuned and judged again: perplexity and KL divergence from the dense model
on rows of held-out text, as in ``benchmarks.quality.table``. Trained on the calibration text, which the held-out text
shares no document with. Both texts are of one kind, so any further training helps; the arm that keeps the whole rank
(the dense model as a checkpoint) shows how much of the gain is that.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.perplexity import HELD_OUT
from benchmarks.quality.table import Judge, rows_of_text

RESULT = ROOT / "benchmarks" / "results" / "finetune.json"
ARMS = {
    "whiten, uniform, 25 % kept": ["--rank-ratio", "0.25", "--objective", "whiten", "--search", "uniform"],
    "weighted, energy, 25 % kept": ["--rank-ratio", "0.25", "--objective", "weighted"],
    "whole rank (control)": ["--rank-ratio", "1"],
}


def run(module: str, *arguments: str) -> None:
    """A command of this package, in a process of its own."""
    command = [sys.executable, "-m", f"offline_compress.{module}", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)


def score(judge: Judge, checkpoint: Path) -> dict[str, float]:
    return judge.score(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval())


def arm(name: str, judge: Judge, training: list[str]) -> dict[str, Any]:
    """One row: before, after, and the record of the training."""
    with tempfile.TemporaryDirectory(prefix="palu-finetune-") as scratch:
        out = Path(scratch) / "out"
        run("__main__", str(MODEL), str(out), "--calib-data", str(CALIBRATION), *ARMS[name])
        before = score(judge, out)
        run("finetune_cli", str(out), "--data", str(CALIBRATION), *training)
        report = json.loads((out / "palu_report.json").read_text())
        return {"arm": name, "bytes_per_token": report["bytes_per_token"], "before": before,
                "after": score(judge, out), "training": report["finetuned"][0]}  # fmt: skip


def table(rows: list[dict[str, Any]], dense: dict[str, float]) -> str:
    """Markdown."""
    lines = ["| checkpoint | before | after | steps | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        before, after = ("{perplexity:.2f} ({kl:.3f})".format(**row[when]) for when in ("before", "after"))
        training = row["training"]
        lines.append(f"| {row['arm']} | {before} | {after} | {training['steps']} | {training['seconds']:.0f} |")
    return "\n".join([*lines, f"Perplexity, in brackets KL divergence; dense {dense['perplexity']:.2f}."])


def judgement(options: argparse.Namespace) -> tuple[Judge, dict[str, Any]]:
    """The judge, and what the result says of it."""
    dense = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    judge = Judge(dense, rows_of_text(MODEL, HELD_OUT, options.context, options.rows))
    facts = {"context": options.context, "rows_of_text": options.rows, "text": HELD_OUT.name}
    return judge, {"dense": judge.score(dense)} | facts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.finetune", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="rows of the others are kept")
    parser.add_argument("--steps", type=int, default=150, help="as palu-finetune --steps")
    parser.add_argument("--batch-size", type=int, default=4, help="as palu-finetune --batch-size")
    parser.add_argument("--seqlen", type=int, default=512, help="as palu-finetune --seqlen")
    parser.add_argument("--context", type=int, default=1024, help="tokens per row of held-out text")
    parser.add_argument("--rows", type=int, default=24, help="rows of text to score, spread evenly over it")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    judge, facts = judgement(options)
    training = ["--steps", str(options.steps), "--batch-size", str(options.batch_size), "--seqlen", str(options.seqlen)]
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [row for row in rows if row["arm"] not in options.arms]
    for name in options.arms:
        rows.append(arm(name, judge, training))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        options.out.write_text(json.dumps({"rows": rows, **facts, "provenance": provenance()}, indent=1) + "\n")
    print(table(rows, facts["dense"]))


if __name__ == "__main__":
    main()
