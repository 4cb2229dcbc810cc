"""The pictures of a comparison: scores against bytes, and a bar per method at each budget."""

from collections.abc import Sequence
from typing import Any

from benchmarks.common.output import png_of, pyplot
from benchmarks.methods.compare.bench import Row
from benchmarks.methods.compare.report import by_budget, saving

MARKERS = "osv^D<>"
SCORES = {
    "kl": "KL from the dense model, nats per token",
    "perplexity": "perplexity",
    "recall": "recall",
    "needle": "needles found",
    "ruler": "RULER, share of answers",
}
LOGARITHMIC = ("kl", "perplexity")


def shown(rows: Sequence[Row], wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if name in rows[0]]


def against_bytes(rows: Sequence[Row]) -> bytes:
    """PNG: divergence, perplexity and recall against how many times fewer bytes are held after the prompt."""
    scores = shown(rows, ("kl", "perplexity", "recall"))
    figure, panels = pyplot.subplots(1, len(scores), figsize=(5.5 * len(scores), 5), dpi=120, layout="constrained")
    for axes, score in zip(panels, scores, strict=True):
        for number, name in enumerate(dict.fromkeys(row["method"] for row in rows[1:])):
            own = sorted(
                (saving(r, rows[0]), r[score]) for r in rows[1:] if r["method"] == name and "unreachable" not in r
            )
            axes.plot([x for x, _ in own], [y for _, y in own], label=name, **_style(name, number))
        axes.set(xlabel="times fewer bytes than dense, after the prompt", ylabel=SCORES[score])
        if score in LOGARITHMIC:
            axes.set_yscale("log")
        if score != "kl":
            axes.axhline(rows[0][score], color="gray", linestyle="--", linewidth=1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return png_of(figure)


def _style(name: str, number: int) -> dict[str, Any]:
    if name == "palu":
        return {"linewidth": 3, "color": "black", "marker": "*"}
    colours = pyplot.colormaps["tab20"].colors
    return {"linewidth": 1, "color": colours[number % len(colours)], "marker": MARKERS[number % len(MARKERS)]}


def bars(rows: Sequence[Row]) -> bytes:
    """PNG: a row of panels per budget, a bar per method; dashed the dense model. Missing: not reached."""
    scores, budgets = shown(rows, tuple(SCORES)), by_budget(rows)
    size = (3.4 * len(scores), 0.8 + sum(0.8 + 0.2 * len(own) for own in budgets.values()))
    figure, grid = pyplot.subplots(
        len(budgets), len(scores), figsize=size, dpi=120, squeeze=False, sharey="row", layout="constrained"
    )
    for panels, (budget, own) in zip(grid, budgets.items(), strict=True):
        for axes, score in zip(panels, scores, strict=True):
            names = [row["method"] for row in own[1:]]
            values = [row.get(score, float("nan")) for row in own[1:]]
            axes.barh(names, values, color=["black" if name == "palu" else "tab:blue" for name in names])
            axes.set_xlabel(SCORES[score], fontsize=8)
            if score != "kl":
                axes.axvline(rows[0][score], color="gray", linestyle="--", linewidth=1)
            elif any(value > 0 for value in values):
                axes.set_xscale("log")
        panels[0].invert_yaxis()
        panels[0].set_ylabel(f"{budget:g} times fewer bytes")
    return png_of(figure)
