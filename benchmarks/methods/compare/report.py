"""A comparison as tables in Markdown and as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.accuracy.report.page import STYLE, picture
from benchmarks.methods.compare.bench import Row

TITLE = "KV-cache methods at equal bytes"
ASKED = {"recall": "recall", "needle": "needle", "ruler": "RULER"}
NOTE = (
    "Bytes are counted from the tensors that each cache holds at the end of the prompt, and again after the "
    "continuation; nothing in these rows is simulated. Knobs were chosen on calibration text within the budget, and "
    "scored on other text. Recall asks after the prompt was compressed; needle and RULER have the question in the "
    "prompt. Times are those of plain torch, one request at a time. Sorted by divergence from the dense model."
)


def by_budget(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """The rows of each budget from the lowest divergence up, the dense row before them."""
    dense, budgets = rows[0], sorted({row["budget"] for row in rows[1:]})
    return {
        budget: [
            dense,
            *sorted((r for r in rows[1:] if r["budget"] == budget), key=lambda row: row.get("kl", float("inf"))),
        ]
        for budget in budgets
    }


def saving(row: Row, dense: Row, which: str = "bytes_at_prompt_end") -> float:
    """How many times fewer bytes than the dense cache."""
    return dense[which] / row[which]


def lm_eval_columns(dense: Row) -> list[tuple[str, str]]:
    """Each task of lm-eval with its first metric."""
    return [(task, next(iter(metrics))) for task, metrics in dense.get("lm_eval", {}).items()]


def columns(rows: Sequence[Row]) -> list[str]:
    asked = [title for name, title in ASKED.items() if name in rows[0]]
    asked += [", ".join(column) for column in lm_eval_columns(rows[0])]
    return ["method", "setting", "perplexity", "KL", *asked, "fewer bytes, prompt", "at the end", "ms per token"]


def cells(row: Row, dense: Row) -> list[str]:
    """As many as ``columns``."""
    asked = [name for name in ASKED if name in dense] + lm_eval_columns(dense)
    if "unreachable" in row:
        return [row["method"], f"not reached: {row['unreachable']}", *[""] * (len(asked) + 5)]
    shares = [f"{row[name]:.0%}" for name in ASKED if name in dense]
    shares += [f"{row['lm_eval'][task][metric]:.3f}" for task, metric in lm_eval_columns(dense)]
    times = [f"{saving(row, dense, which):.2f}x" for which in ("bytes_at_prompt_end", "bytes_after")]
    measured = [f"{row['perplexity']:.3f}", f"{row['kl']:.4f}", *shares, *times]
    return [row["method"], row["setting"], *measured, f"{1000 * row['seconds_per_token']:.0f}"]


def tables(rows: Sequence[Row]) -> str:
    """Markdown, one table per budget."""
    parts = []
    for budget, own in by_budget(rows).items():
        head = columns(rows)
        lines = [head, ["---"] * len(head), *(cells(row, rows[0]) for row in own)]
        parts += [f"## {budget:g} times fewer bytes", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts)


def html_table(rows: Sequence[Row], dense: Row) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns([dense]))
    body = ""
    for row in rows:
        kind = ' class="headline"' if row["method"] == "palu" else ""
        body += f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row, dense)) + "</tr>\n"
    return f"<table>\n<tr>{head}</tr>\n{body}</table>"


def page(rows: Sequence[Row], facts: Mapping[str, Any], pictures: Mapping[str, bytes | None]) -> str:
    """The whole page; ``facts`` are settings and provenance, ``pictures`` PNGs by title."""
    parts = [f"<h1>{TITLE}</h1>", f"<p>{escape(NOTE)}</p>"]
    for budget, own in by_budget(rows).items():
        parts += [f"<h2>{budget:g} times fewer bytes</h2>", html_table(own, rows[0])]
    parts += [picture(title, png) for title, png in pictures.items()]
    known = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    parts += ["<h2>Settings</h2>", f"<table>{known}<tr><td>commits of rows</td><td>{commits}</td></tr></table>"]
    head = f'<meta charset="utf-8"><title>{TITLE}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
