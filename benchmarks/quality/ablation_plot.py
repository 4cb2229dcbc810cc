"""The table and the plot of ``benchmarks.quality.ablation``, from its rows."""

from pathlib import Path

from benchmarks.common.output import pyplot, save
from benchmarks.common.output import table as markdown


def increase(row: dict, dense: float) -> float:
    """Perplexity over the dense model's, in per cent."""
    return 100 * (row["perplexity"] / dense - 1)


def taken_away(rows: list[dict], ratio: float, dense: float) -> float:
    """The share of the paper's increase of perplexity that the default does not have, at one ratio."""
    of_ratio = [row for row in rows if row["ratio"] == ratio]
    paper, weighted = (next(row for row in of_ratio if row[which]) for which in ("paper", "weighted"))
    return 1 - increase(weighted, dense) / increase(paper, dense)


def table(rows: list[dict], dense: float) -> str:
    """Markdown: arms down, ratios across; what rebuilds keys is that of the smallest ratio."""
    ratios = list(dict.fromkeys(row["ratio"] for row in rows))
    heads = [[f"{ratio:.1%} kept: perplexity", "KL", "bytes"] for ratio in ratios]
    cells: dict[str, list[str]] = {}
    for row in rows:
        name = row["arm"] + " (the paper)" * row["paper"] + " (the default)" * row["weighted"]
        score = f"{row['perplexity']:.2f} ({increase(row, dense):+.1f} %)"
        cells.setdefault(name, [name]).extend((score, f"{row['kl']:.4f}", str(row["bytes_per_token"])))
    work = {row["arm"]: row["rebuild_work_per_token"] for row in rows if row["ratio"] == min(ratios)}
    lines = [[*line, work[name.split(" (")[0]]] for name, line in cells.items()]
    head = ["method", *(title for titles in heads for title in titles), f"rebuild work at {min(ratios):.1%}"]
    kept = [f"{taken_away(rows, ratio, dense):.0%} at {ratio:.1%}" for ratio in ratios]
    return f"{markdown(head, lines)}\n\nOf the paper's increase of perplexity the default takes away {', '.join(kept)}."


def plot(rows: list[dict], dense: float, target: Path) -> None:
    """Increase of perplexity per arm, one panel per ratio."""
    ratios = list(dict.fromkeys(row["ratio"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure, panels = pyplot.subplots(1, len(ratios), figsize=(4 + 2.6 * len(ratios), 5), dpi=150, sharey=True)
    for panel, ratio in zip([panels] if len(ratios) == 1 else panels, ratios, strict=True):
        for row in (row for row in rows if row["ratio"] == ratio):
            colour = "crimson" if row["weighted"] else "black" if row["paper"] else "steelblue"
            panel.barh(arms.index(row["arm"]), max(increase(row, dense), 0.01), color=colour)
        panel.set(xscale="log", xlabel="perplexity over dense, %", title=f"{ratio:.1%} kept")
        panel.grid(alpha=0.3, axis="x", which="both")
    panel.set_yticks(range(len(arms)), arms)
    panel.invert_yaxis()
    figure.suptitle("The shipped model; black: the paper's method, red: the default")
    save(figure, target)
