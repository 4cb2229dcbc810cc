"""Perplexity and recall of the shipped model against the share of KV rank kept: ``python -m
benchmarks.quality.rank_ratios``.

Every row is compressed by ``palu-compress``, scored through vLLM on held-out text (``benchmarks.perplexity``)
and asked to repeat facts (``demo.check``). Writes JSON and the plot that the README shows. Rows that the JSON
already has are kept with the commit that made them; ``--again`` makes them anew.
"""

import json
import tempfile
from pathlib import Path

from benchmarks.common.commands import compress, perplexity, run
from benchmarks.common.output import IMAGES, RESULTS, command_line, pyplot, save, table, write_result
from benchmarks.common.provenance import provenance
from benchmarks.common.shipped import MODEL

RESULT = RESULTS / "rank_ratios.json"
RATIOS = (1.0, 0.75, 0.5, 0.25)
OBJECTIVES = ("svd", "whiten", "weighted")


def score(model: Path, context: int) -> dict:
    scored = perplexity(model, "--context", context, "--dtype", "float32")
    looked_back = json.loads(run("demo.check", model).strip().splitlines()[-1])
    kept = {name: scored[name] for name in ("perplexity", "tokens")}
    return kept | {name: looked_back[name] for name in ("recall", "returning_loss_ratio")}


def compressed_row(ratio: float, objective: str, search: str | None, context: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="palu-ratio-") as scratch:
        out, ranks = Path(scratch) / "compressed", ["--search", search] if search else []
        report = compress(out, "--rank-ratio", ratio, "--objective", objective, *ranks)
        kept = {name: report[name] for name in ("search", "bytes_per_token", "dense_bytes_per_token")}
        identity = {"ratio": ratio, "objective": objective, "commit": provenance()["commit"]}
        return identity | kept | score(out, context)


def plot(rows: list[dict], dense: dict, target: Path) -> None:
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
    save(figure, target)


def markdown(rows: list[dict], dense: dict) -> str:
    """The README's table."""
    names = [f"{score}: {OBJECTIVES[0]}" for score in ("perplexity", "recall")]
    head = ["kept", "KV bytes per token", names[0], *OBJECTIVES[1:], names[1], *OBJECTIVES[1:]]
    first = ["dense", rows[0]["dense_bytes_per_token"], f"{dense['perplexity']:.2f}", "", "", f"{dense['recall']:.0%}"]
    lines = [[*first, "", ""]]
    for ratio in RATIOS:
        kept = [next(r for r in rows if (r["ratio"], r["objective"]) == (ratio, name)) for name in OBJECTIVES]
        cells = [f"{row['perplexity']:.2f}" for row in kept] + [f"{row['recall']:.0%}" for row in kept]
        lines.append([f"{ratio:.0%}", kept[0]["bytes_per_token"], *cells])
    return table(head, lines)


def main() -> None:
    parser = command_line("benchmarks.quality.rank_ratios", __doc__)
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
    write_result(RESULT, {"context": options.context, "dense": dense, "rows": rows})
    plot(rows, dense, IMAGES / "rank_ratios.png")
    print(markdown(rows, dense))


if __name__ == "__main__":
    main()
