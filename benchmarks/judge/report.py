"""One table, one plot and one page of a result of the judge."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common.output import png_of, pyplot, table
from benchmarks.common.report import Part, page

Row = dict[str, Any]
METHODS = {"fp8": "x", "nvfp4": "+", "int": "s", "turboquant": "^", "kvarn": "v", "kivi": "<", "llama": "*",
           "codec": "P", "palu": "o"}  # fmt: skip
HEAD = ["arm", "fewer bytes", "at 32K", "KL", "99 %", "99.9 %", "same top", "perplexity", "agrees for", "needles"]


def ordered(rows: list[Row]) -> list[Row]:
    """The dense model first, then by bytes."""
    return sorted(
        (row for row in rows if "kl" in row), key=lambda row: (row["arm"] != "dense", row["times_fewer_bytes"])
    )


def line(row: Row) -> list[str]:
    needles = row.get("needles")
    return [
        row["arm"], f"{row['times_fewer_bytes']:.2f}x", f"{row['times_fewer_bytes_long']:.2f}x", f"{row['kl']:.4f}",
        f"{row['kl_99']:.3f}", f"{row['kl_999']:.3f}", f"{row['top1']:.1%}",
        f"{row['perplexity']:.2f} ± {row['perplexity_error']:.2f}",
        f"{row['agreed_tokens']:.1f}" if "agreed_tokens" in row else "", "" if needles is None else f"{needles:.0%}",
    ]  # fmt: skip


def by(field: str, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """KL by kind of text or by position."""
    parts = list(rows[0][field])
    return ["arm", *parts], [[row["arm"], *(f"{row[field][part]['kl']:.4f}" for part in parts)] for row in rows]


def plot(rows: list[Row]) -> Any:
    """KL against bytes, both logarithmic, a mark per method."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=130)
    for method, marker in METHODS.items():
        points = [row for row in rows if row["arm"].startswith(method) and row["kl"] > 0]
        if points:
            axes.plot([row["times_fewer_bytes"] for row in points], [row["kl"] for row in points], marker,
                      label=method, markersize=8)  # fmt: skip
        for row in points:
            axes.annotate(row["arm"], (row["times_fewer_bytes"], row["kl"]), fontsize=6, xytext=(4, 3),
                          textcoords="offset points")  # fmt: skip
    ticks = [1.5, 2, 3, 4, 5, 6, 8]
    axes.set(xscale="log", yscale="log", xlabel="times fewer bytes than 16 bits", ylabel="KL from the dense model")
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def write_report(result: Path) -> str:
    """Writes a picture and a page beside ``result``; returns the table as Markdown."""
    content = json.loads(result.read_text(encoding="utf-8"))
    rows, facts = ordered(content["rows"]), content["facts"]
    png = png_of(plot(rows))
    result.with_suffix(".png").write_bytes(png)
    said = [
        f"{facts['model']}, {facts['rows_of_each']} rows of {facts['context']} tokens of each kind of text "
        f"({', '.join(facts['kinds'])}). Bytes are of codes, scales and what is kept in 16 bits, at the end of a row.",
        "Keys and values go through codes and back in plain attention (simulated), but for palu and llama.cpp.",
    ]
    kinds, positions = by("by_kind", rows), by("by_position", rows)
    parts = [
        Part(paragraphs=said, head=HEAD, rows=[line(row) for row in rows], png=png),
        Part("KL by kind of text", head=kinds[0], rows=kinds[1]),
        Part("KL by position", head=positions[0], rows=positions[1]),
    ]
    result.with_suffix(".html").write_text(
        page(f"KV caches of {facts['model']}", parts, content["provenance"]), encoding="utf-8"
    )
    return table(HEAD, [line(row) for row in rows])
