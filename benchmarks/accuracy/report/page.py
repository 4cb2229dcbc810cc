"""A report as one HTML page that needs nothing else: tables, and pictures within it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.accuracy.report.comparison import Entry, Estimate, Line

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em auto; max-width: 75em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: .25em .6em; text-align: right; }
th, td:first-child, td:nth-child(2) { text-align: left; }
tr.headline { font-weight: 600; background: #f4f4f4; }
img { max-width: 100%; }
small { color: #666; font-weight: 400; }
"""
NOTE = (
    "± is one standard error, by linearization over rows (binomial for 0/1 scores; perplexity in log space). "
    "Differences and recovery are paired by row; * marks those that are not, because only the value is known. "
    "Recovery is score / dense score, and the inverse for perplexity and whatever else is better when lower. "
    "An error of 0 says that all rows agreed, not that nothing is uncertain."
)


def number(value: float | None, scale: float = 1) -> str:
    """Four significant digits; n/a for None."""
    return "n/a" if value is None else f"{scale * value:.4g}"


def estimate(part: Estimate, scale: float = 1, unit: str = "") -> str:
    if part.value is None:
        return "n/a"
    error = "" if part.stderr is None else f" <small>± {number(part.stderr, scale)}</small>"
    return f"{number(part.value, scale)}{unit}{error}"


def cells(part: Entry | None) -> list[str]:
    if part is None:
        return ["not measured", "", ""]
    mark = "" if part.paired else "*"
    return [
        estimate(part.score),
        estimate(part.difference) + mark,
        estimate(part.recovery, 100, " %") + (mark if part.recovery.value is not None else ""),
    ]


def table(models: Sequence[Mapping[str, Any]], lines: Sequence[Line]) -> str:
    """One row per line; whole tasks stand out."""
    names = "".join(f'<th colspan="3">{escape(model["name"])}</th>' for model in models[1:])
    under = "<th>score</th><th>difference</th><th>recovery</th>" * (len(models) - 1)
    head = '<tr><th rowspan="2">task</th><th rowspan="2">metric</th><th rowspan="2">rows</th>'
    head += f'<th rowspan="2">dense</th>{names}</tr><tr>{under}</tr>'
    body = ""
    for line in lines:
        parts = [escape(line.title), escape(line.metric), str(line.count), estimate(line.dense)]
        parts += [cell for entry in line.others for cell in cells(entry)]
        kind = ' class="headline"' if line.headline else ""
        body += f"<tr{kind}>" + "".join(f"<td>{part}</td>" for part in parts) + "</tr>\n"
    return f"<table>\n{head}\n{body}</table>"


def model_table(models: Sequence[Mapping[str, Any]]) -> str:
    entries = list(dict.fromkeys(entry for model in models for entry in model))
    head = "".join(f"<th>{escape(entry.replace('_', ' '))}</th>" for entry in entries)
    rows = ("".join(f"<td>{escape(str(model.get(entry, '')))}</td>" for entry in entries) for model in models)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def picture(title: str, png: bytes | None) -> str:
    if png is None:
        return ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="{source}">'


def page(
    models: Sequence[Mapping[str, Any]], lines: Sequence[Line], needle: bytes | None, recovery: bytes | None
) -> str:
    """The whole page. ``models`` begin with the dense one."""
    title = f"Accuracy of {models[0]['name']}, dense and compressed"
    parts = [
        f"<h1>{escape(title)}</h1>",
        model_table(models),
        f"<p>{escape(NOTE)}</p>",
        picture("Recovery", recovery),
        picture("Needle in a haystack", needle),
        "<h2>All scores</h2>",
        table(models, lines),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return (
        f"<!doctype html>\n<html><head>{head}</head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )
