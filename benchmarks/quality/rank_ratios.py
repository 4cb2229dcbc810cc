"""Perplexity and recall of the shipped model against the share of KV rank kept: ``python -m
benchmarks.quality.rank_ratios``.

Every row is compressed by ``palu-compress``, scored through vLLM on held-out text (``benchmarks.perplexity``)
and asked to repeat facts (``demo.check``). Writes JSON and the plot that the README shows. Rows that the JSON
already has are kept with the commit that made them; ``--again`` makes them anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.perplexity import HELD_OUT

RESULT = ROOT / "benchmarks" / "results" / "rank_ratios.json"
PLOT = ROOT / "docs" / "images" / "rank_ratios.png"
RATIOS = (1.0, 0.75, 0.5, 0.25)
OBJECTIVES = ("svd", "whiten", "weighted")


def run_json(module: str, *arguments: str) -> dict:
    """The last line that ``python -m module`` prints, as JSON. Raises CalledProcessError, its error text shown."""
    command = [sys.executable, "-m", module, *arguments]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    return json.loads(printed.strip().splitlines()[-1])


def score(model: Path, context: int) -> dict:
    options = ["--text", str(HELD_OUT), "--context", str(context), "--dtype", "float32", "--json"]
    scored = run_json("benchmarks.perplexity", "--model", str(model), *options)
    looked_back = run_json("demo.check", str(model))
    return {"perplexity": scored["perplexity"], "tokens": scored["tokens"], "recall": looked_back["recall"],
            "returning_loss_ratio": looked_back["returning_loss_ratio"]}  # fmt: skip


def compressed_row(ratio: float, objective: str, search: str | None, context: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="palu-ratio-") as scratch:
        out = Path(scratch) / "compressed"
        command = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--rank-ratio", str(ratio),
                   "--objective", objective, "--calib-data", str(CALIBRATION)]  # fmt: skip
        command += ["--search", search] if search else []
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        report = json.loads((out / "palu_report.json").read_text())
        return {"ratio": ratio, "objective": objective, "search": report["search"],
                "commit": provenance()["commit"], "bytes_per_token": report["bytes_per_token"],
                "dense_bytes_per_token": report["dense_bytes_per_token"], **score(out, context)}  # fmt: skip


def plot(rows: list[dict], dense: dict, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), dpi=150)
    for objective, marker in zip(OBJECTIVES, "sov", strict=True):
        points = [(row["ratio"], row["perplexity"]) for row in rows if row["objective"] == objective]
        axes.plot(*zip(*points, strict=True), marker=marker, label=f"palu, {objective}")
    axes.axhline(dense["perplexity"], color="gray", linestyle="--", label="dense")
    axes.set(
        xlabel="share of KV rank kept",
        ylabel="held-out perplexity",
        yscale="log",
        title="The shipped model, served by vLLM",
    )
    axes.invert_xaxis()
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, bbox_inches="tight")


def markdown(rows: list[dict], dense: dict) -> str:
    """The README's table."""
    lines = [
        f"| kept | KV bytes per token | perplexity: {' | '.join(OBJECTIVES)} | recall: {' | '.join(OBJECTIVES)} |",
        "|---" * (2 + 2 * len(OBJECTIVES)) + "|",
        f"| dense | {rows[0]['dense_bytes_per_token']} | {dense['perplexity']:.2f} | | | {dense['recall']:.0%} | | |",
    ]
    for ratio in RATIOS:
        kept = [next(r for r in rows if (r["ratio"], r["objective"]) == (ratio, name)) for name in OBJECTIVES]
        cells = [f"{row['perplexity']:.2f}" for row in kept] + [f"{row['recall']:.0%}" for row in kept]
        lines.append(f"| {ratio:.0%} | {kept[0]['bytes_per_token']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.rank_ratios", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--search", help="as palu-compress --search (default: that of the objective)")
    parser.add_argument("--again", action="store_true", help="make rows anew that the result file already has")
    options = parser.parse_args()
    before = {"context": options.context, "rows": []} if options.again else json.loads(RESULT.read_text())
    if before["context"] != options.context:
        parser.error(f"{RESULT.name} has rows of {before['context']} tokens; add --again to replace them")
    known = {(row["ratio"], row["objective"]): row for row in before["rows"]}
    dense, rows = before.get("dense") or score(MODEL, options.context), []
    for ratio in RATIOS:
        for objective in OBJECTIVES:
            row = known.get((ratio, objective)) or compressed_row(ratio, objective, options.search, options.context)
            rows.append(row)
            print(json.dumps(row), flush=True)
    RESULT.write_text(
        json.dumps({"context": options.context, "dense": dense, "rows": rows, "provenance": provenance()}, indent=1)
        + "\n"
    )
    plot(rows, dense, PLOT)
    print(markdown(rows, dense))


if __name__ == "__main__":
    main()
