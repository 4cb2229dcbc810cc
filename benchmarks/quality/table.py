"""Ranks and bits of the shipped model: ``python -m benchmarks.quality.table [--model DIR] [--text FILE]``.

Perplexity and the Kullback-Leibler divergence from the dense model's next-token distribution, on the same rows of
held-out text, for the settings of ``arms.py``. Bytes per token are those of the checkpoint's dtype. Rivals are judged
on real models only (``benchmarks.judge``).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.output import IMAGES, command_line, say, write_result
from benchmarks.common.shipped import CALIBRATION, HELD_OUT, MODEL
from benchmarks.quality.arms import BUDGETS, RATIOS, palu_arms, vllm_arms
from benchmarks.quality.held_out import Judge, add_options, load, rows_of_text
from benchmarks.quality.plot import plot, tables
from palu_vllm.format.config import AttentionGeometry


def scored(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per arm, the dense model first."""
    config = json.loads((options.model / "config.json").read_text())
    geometry, dtype = AttentionGeometry.from_hf_config(config), config.get("dtype") or config["torch_dtype"]
    dense = load(options.model)
    judge = Judge(dense, rows_of_text(options.model, options.text, options.context, options.rows))
    yield {"arm": "dense", "bytes_per_token": geometry.dense_bytes_per_token(dtype), **judge.score(dense)}
    yield from vllm_arms(options, geometry)
    for row, model in palu_arms(options, dtype):
        yield row | judge.score(model)


def main() -> None:
    parser = command_line("benchmarks.quality.table", __doc__, "quality_table.json")
    add_options(parser, rows=16)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--calib-data", type=Path, default=CALIBRATION)
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS)
    parser.add_argument(
        "--budgets", type=float, nargs="*", default=BUDGETS, help="as palu-compress --target-compression"
    )
    parser.add_argument("--plot", type=Path, default=IMAGES / "quality.png")
    options = parser.parse_args()
    rows = []
    for row in scored(options):
        rows.append(row)
        say(row)
    facts = {"context": options.context, "rows_of_text": options.rows, "text": options.text.name}
    facts["calibration_samples"] = options.calib_samples
    write_result(options.out, {"rows": rows, **facts})
    plot(rows, options.plot)
    print(tables(rows))


if __name__ == "__main__":
    main()
