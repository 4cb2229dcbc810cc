"""The comparison as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.accuracy.report.page import STYLE, picture

ON_CPU = (
    "Measured on a CPU, where rebuilding keys is arithmetic that nothing hides: what the smaller cache saves shows in "
    "the contexts held, not in the time per token."
)
NOTE = (
    "Every arm has the same bytes of KV cache. Contexts held: as many requests as its own pool takes, sent at once; "
    "the number counts if all ran at the same time and none was preempted. The other figures: the same requests for "
    "all arms, as many as the largest pool holds, sent at once; medians of the repeats, least and most in brackets. "
    "Prompts differ in every cell and prefix caching is off. Measured by vllm bench serve."
)
COLUMNS = {
    "output_throughput": "tokens/s", "median_ttft_ms": "TTFT ms", "p99_ttft_ms": "TTFT p99 ms",
    "median_tpot_ms": "TPOT ms", "peak_running": "running at most", "preemptions": "preemptions",
}  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *rows]
    marks = ["th"] + ["td"] * len(rows)
    body = (
        "".join(f"<{mark}>{escape(cell)}</{mark}>" for cell in line) for mark, line in zip(marks, lines, strict=True)
    )
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in body) + "</table>"


def arm_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Capacity and quality, one row per arm; one that did not start has its reason."""
    rows = []
    for name, facts in arms.items():
        if "missing" in facts:
            rows.append([name, facts["missing"], "", ""])
            continue
        perplexity = facts.get("perplexity")
        quality = "not measured" if perplexity is None else f"{perplexity:.2f}"
        rows.append([name, f"{facts['bytes_per_token']:.0f}", f"{facts['capacity_tokens']:,}", quality])
    return table(["arm", "bytes per token", "capacity in tokens", "perplexity"], rows)


def figure_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[row["arm"], str(row["context"]), str(row["held"]), str(row["load"]),
              *(_spread(row[name]) for name in COLUMNS)] for row in rows]  # fmt: skip
    return table(["arm", "context", "held", "requests at once", *COLUMNS.values()], cells)


def _spread(value: Mapping[str, float]) -> str:
    return f"{_number(value['median'])} [{_number(value['least'])}, {_number(value['most'])}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def page(result: Mapping[str, Any], png: bytes) -> str:
    """The whole page of what ``benchmarks.serving`` measured."""
    title = f"{result['model']} served side by side, {result['pool_bytes'] / 2**20:.0f} MiB of KV cache each"
    where = result["provenance"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(NOTE)}</p>",
        f"<p>{escape(ON_CPU)}</p>" if result["on_cpu"] else "",
        arm_table(result["arms"]),
        picture("Side by side", png),
        figure_table(result["rows"]),
        f"<p><small>{escape(' '.join(where['command']))}, commit {escape(where['commit'])}, "
        f"{escape(where['device'])}, {escape(str(where['versions']))}</small></p>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return (
        f"<!doctype html>\n<html><head>{head}</head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )
