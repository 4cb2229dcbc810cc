"""The plot of a latency benchmark, from its rows: time over context, one line per arm."""

from pathlib import Path
from typing import Any


def lines_of(rows: list[dict]) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Per arm, and number of requests where there are several, the contexts that were timed and their seconds."""
    several = len({row["batch"] for row in rows}) > 1
    lines: dict[str, list] = {}
    for row in rows:
        if "missing" not in row:
            name = row["arm"] + (f", {row['batch']} requests" if several else "")
            lines.setdefault(name, []).append((row["context"], row["seconds"]))
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Writes a picture; medians as lines, quartiles as bands. Says so where the rows are no measurement."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for arm, points in lines_of(result["rows"]).items():
        contexts = [context for context, _ in points]
        medians, low, high = ([1e6 * seconds[name] for _, seconds in points] for name in ("median", "low", "high"))
        axes.plot(contexts, medians, marker="o", label=arm)
        axes.fill_between(contexts, low, high, alpha=0.2)
    axes.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="microseconds per step")
    axes.set_title(f"{result['title']}\n{result['kind']}, {result['provenance']['device']}", fontsize=9)
    axes.set_xticks(sorted({row["context"] for row in result["rows"]}))
    axes.get_xaxis().set_major_formatter(matplotlib.ticker.FuncFormatter(lambda tokens, _: f"{tokens:.0f}"))
    axes.get_xaxis().set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
