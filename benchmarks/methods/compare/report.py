"""A comparison as tables in Markdown and as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import report
from benchmarks.common.output import table
from benchmarks.common.report import Part
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
        parts += [f"## {budget:g} times fewer bytes", table(head, [cells(row, rows[0]) for row in own])]
    return "\n\n".join(parts)


def page(rows: Sequence[Row], facts: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The whole page; ``facts`` are settings and provenance, ``pictures`` PNGs by title."""
    parts = [Part(paragraphs=[NOTE])]
    for budget, own in by_budget(rows).items():
        lines = [cells(row, rows[0]) for row in own]
        palu = [number for number, row in enumerate(own) if row["method"] == "palu"]
        parts.append(Part(f"{budget:g} times fewer bytes", head=columns(rows), rows=lines, headlines=palu))
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    settings = Part("Settings", rows=[*facts.items(), ("commits of rows", commits)])
    return report.page(TITLE, [*parts, *(Part(title, png=png) for title, png in pictures.items()), settings])
