"""What ``palu-finetune`` wins back: ``python -m benchmarks.experiments.finetune``.

The shipped model is compressed, judged, fine-tuned on the calibration text and judged again. The held-out text shares
no document with that, but is of one kind, so that any training helps; the arm that keeps the whole rank shows how much.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.commands import compress, run
from benchmarks.common.output import command_line
from benchmarks.common.output import table as markdown
from benchmarks.common.shipped import CALIBRATION
from benchmarks.experiments.harness import Row, conduct, scored
from benchmarks.quality.held_out import Judge

ARMS = {
    "whiten, uniform, 25 % kept": ["--rank-ratio", "0.25", "--objective", "whiten", "--search", "uniform"],
    "weighted, energy, 25 % kept": ["--rank-ratio", "0.25", "--objective", "weighted"],
    "whole rank (control)": ["--rank-ratio", "1"],
}


def rows(options: argparse.Namespace, judge: Judge, scratch: Path) -> Iterator[Row]:
    """Each arm before and after, with the record of its training."""
    training = ["--steps", options.steps, "--batch-size", options.batch_size, "--seqlen", options.seqlen]
    for number, name in enumerate(options.arms):
        out = scratch / str(number)
        size = compress(out, *ARMS[name], "--calib-samples", options.calib_samples)["bytes_per_token"]
        before = judge.score_checkpoint(out)
        run("offline_compress.commands.finetune", out, "--data", CALIBRATION, *training)
        record = json.loads((out / "palu_report.json").read_text())["finetuned"][0]
        yield {"arm": name, "bytes_per_token": size, "before": before, "after": judge.score_checkpoint(out),
               "training": record}  # fmt: skip


def table(rows: list[Row]) -> str:
    lines = [
        [row["arm"], scored(row["before"]), scored(row["after"]), row["training"]["steps"],
         f"{row['training']['seconds']:.0f}"]
        for row in rows
    ]  # fmt: skip
    return markdown(["checkpoint", "before", "after", "steps", "seconds"], lines)


def main() -> None:
    parser = command_line("benchmarks.experiments.finetune", __doc__, "finetune.json")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=150, help="as palu-finetune --steps")
    parser.add_argument("--batch-size", type=int, default=4, help="as palu-finetune --batch-size")
    parser.add_argument("--seqlen", type=int, default=512, help="as palu-finetune --seqlen")
    conduct(parser, rows, table)


if __name__ == "__main__":
    main()
