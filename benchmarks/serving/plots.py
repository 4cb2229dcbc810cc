"""The picture of a comparison: what each arm holds, and what it costs."""

from collections.abc import Sequence
from typing import Any

from benchmarks.common.output import png_of, pyplot

PANELS = (
    ("held", "contexts held without preemption"),
    ("preemptions", "preemptions under the common load"),
    ("output_throughput", "tokens per second, all requests"),
    ("median_tpot_ms", "ms per output token (median)"),
    ("median_ttft_ms", "ms to the first token (median)"),
    ("peak_running", "requests running at once, at most"),
)


def comparison(rows: Sequence[dict[str, Any]]) -> bytes:
    """PNG: one panel per figure, a bar per arm and context; lines from the least to the most of the repeats."""
    arms, contexts = (list(dict.fromkeys(row[name] for row in rows)) for name in ("arm", "context"))
    figure, grid = pyplot.subplots(2, 3, figsize=(13, 7), dpi=120, layout="constrained")
    for axes, (name, title) in zip(grid.flat, PANELS, strict=True):
        for place, arm in enumerate(arms):
            _bars(axes, [row for row in rows if row["arm"] == arm], name, place / (len(arms) + 1), contexts)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, max(1, axes.get_ylim()[1]))
        axes.set_xticks([i + 0.4 for i in range(len(contexts))], [f"{context} tokens" for context in contexts])
    grid.flat[0].legend(arms, fontsize=9)
    return png_of(figure)


def _bars(axes: Any, rows: Sequence[dict[str, Any]], name: str, offset: float, contexts: Sequence[int]) -> None:
    at = [contexts.index(row["context"]) + offset for row in rows]
    spreads = [row[name] if isinstance(row[name], dict) else dict.fromkeys(("median", "least", "most"), row[name])
               for row in rows]  # fmt: skip
    middle = [value["median"] for value in spreads]
    below, above = ([abs(value[end] - value["median"]) for value in spreads] for end in ("least", "most"))
    axes.bar(at, middle, width=0.18, yerr=(below, above), capsize=2)
