"""Do layers that share a cache (KVSharer) and low rank together save bytes better than low rank alone?

``python -m benchmarks.experiments.shared_layers`` writes ``benchmarks/results/shared_layers.json`` and prints a table.
A row is what ``palu-compress`` makes of the shipped model for a number of bytes with some layers shared, so that rows
of one budget hold the same bytes. Judged as in ``benchmarks.quality.table``, by transformers in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.quality.held_out import add_options, judge_of
from benchmarks.quality.table import Judge
from palu_vllm.format.checkpoint import read_config

RESULT = ROOT / "benchmarks" / "results" / "shared_layers.json"
BUDGETS, SHARED = (2, 4, 6), (0, 1, 2)


def compress(out: Path, budget: float, shared: int, samples: int) -> str | None:
    """Runs ``palu-compress`` on the shipped model; what it says where it refuses."""
    command = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--target-compression", str(budget)]
    command += ["--calib-data", str(CALIBRATION), "--calib-samples", str(samples)]
    command += ["--share-layers", str(shared)] if shared else []
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def measured(out: Path, judge: Judge) -> dict[str, Any]:
    _, palu, geometry = read_config(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    sources = [source for layer, source in enumerate(palu.source_layers or ()) if source != layer]
    return {"sources": sources, "bytes_per_token": palu.bytes_per_token(geometry, "float16")} | judge.score(model)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: shared layers down, budgets across; perplexity and, in brackets, KL divergence."""
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    head = "".join(f" {budget:g}x |" for budget in budgets)
    lines = [f"| layers shared |{head}", "|---" * (1 + len(budgets)) + "|"]
    for shared in dict.fromkeys(row["shared"] for row in rows):
        own = {row["budget"]: row for row in rows if row["shared"] == shared}
        cells = [
            "refused" if "refused" in row else f"{row['perplexity']:.2f} ({row['kl']:.4f})"
            for row in (own[budget] for budget in budgets)
        ]
        lines.append(f"| {shared} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.shared_layers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="times fewer bytes than dense")
    parser.add_argument("--shared", type=int, nargs="+", default=SHARED, help="layers that read another's cache")
    add_options(parser, RESULT)
    options = parser.parse_args()
    judge, facts = judge_of(options)
    found = []
    for budget, shared in ((budget, shared) for budget in options.budgets for shared in options.shared):
        with tempfile.TemporaryDirectory(prefix="palu-shared-") as scratch:
            refusal = compress(Path(scratch) / "out", budget, shared, options.calib_samples)
            row = {"refused": refusal} if refusal else measured(Path(scratch) / "out", judge)
        found.append({"budget": budget, "shared": shared} | row)
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    options.out.write_text(json.dumps({"rows": found, **facts, "provenance": provenance()}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
