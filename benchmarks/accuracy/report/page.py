"""The comparison as one HTML page that needs nothing else: tables, and pictures within it."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from benchmarks.accuracy.report.comparison import Entry, Estimate, Line
from benchmarks.common import report
from benchmarks.common.report import Part

NOTE = (
    "± is one standard error, by linearization over rows (binomial for 0/1 scores; perplexity in log space). "
    "Differences and recovery are paired by row; * marks those that are not, because only the value is known. "
    "Recovery is score / dense score, and the inverse for perplexity and whatever else is better when lower. "
    "An error of 0 says that all rows agreed, not that nothing is uncertain."
)


def number(value: float | None, scale: float = 1) -> str:
    """Four significant digits; n/a for None."""
    return "n/a" if value is None else f"{scale * value:.4g}"


def estimate(part: Estimate, scale: float = 1, unit: str = "", mark: str = "") -> str:
    if part.value is None:
        return "n/a"
    error = "" if part.stderr is None else Markup(" <small>± {}</small>").format(number(part.stderr, scale))
    return Markup("{}{}{}{}").format(number(part.value, scale), unit, error, mark)


def cells(part: Entry | None) -> list[str]:
    if part is None:
        return ["not measured", "", ""]
    mark = "" if part.paired else "*"
    recovery = estimate(part.recovery, 100, " %", mark)
    return [estimate(part.score), estimate(part.difference, mark=mark), recovery]


def scores(models: Sequence[Mapping[str, Any]], lines: Sequence[Line]) -> Part:
    """One row per line; whole tasks stand out."""
    rows = []
    for line in lines:
        own = [line.title, line.metric, line.count, estimate(line.dense)]
        rows.append([*own, *(cell for entry in line.others for cell in cells(entry))])
    return Part(
        "All scores",
        groups=[("", 4), *((model["name"], 3) for model in models[1:])],
        head=["task", "metric", "rows", "dense", *["score", "difference", "recovery"] * (len(models) - 1)],
        rows=rows,
        headlines=[number for number, line in enumerate(lines) if line.headline],
    )


def about(models: Sequence[Mapping[str, Any]]) -> Part:
    """What is known of each model, and how to read the page."""
    entries = list(dict.fromkeys(entry for model in models for entry in model))
    rows = [[model.get(entry, "") for entry in entries] for model in models]
    return Part(head=[entry.replace("_", " ") for entry in entries], rows=rows)


def page(
    models: Sequence[Mapping[str, Any]], lines: Sequence[Line], needle: bytes | None, recovery: bytes | None
) -> str:
    """The whole page. ``models`` begin with the dense one."""
    pictures = [
        Part(title, png=png) for title, png in (("Recovery", recovery), ("Needle in a haystack", needle)) if png
    ]
    parts = [about(models), Part(paragraphs=[NOTE]), *pictures, scores(models, lines)]
    return report.page(f"Accuracy of {models[0]['name']}, dense and compressed", parts)
