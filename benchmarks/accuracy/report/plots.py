"""The pictures of a report: heat maps of the needle, and recovery of every task."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy.report.comparison import Line
from benchmarks.accuracy.report.scores import Score
from benchmarks.common.output import png_of, pyplot

FEW_MAPS, FEW_COLUMNS, MANY_COLUMNS = 4, 2, 5


def label(model: Mapping[str, Any]) -> str:
    """A model's name, and its bytes of KV cache per token where they are known."""
    size = f"\n{model['bytes_per_token']:g} bytes per token" if "bytes_per_token" in model else ""
    return f"{model['name']}{size}"


def needle_maps(
    models: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[Score]], metric: str = "found"
) -> bytes | None:
    """PNG: depth against length, one map per model; None where no model has cells."""
    cells = [{(s.subset["depth"], s.subset["length"]): s.value for s in own if _is_cell(s, metric)} for own in scores]
    shown = [(model, found) for model, found in zip(models, cells, strict=True) if found]
    if not shown:
        return None
    columns, width = (FEW_COLUMNS, 5) if len(shown) <= FEW_MAPS else (MANY_COLUMNS, 3.2)
    rows = -(-len(shown) // columns)
    size = (columns * width, rows * width * 0.7)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, dpi=130, squeeze=False, layout="constrained")
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, (model, found) in zip(grid.flat, shown, strict=False):
        image = _map(axes, found)
        axes.set_title(f"{label(model)}, mean {sum(found.values()) / len(found):.0%}", fontsize=9)
    figure.colorbar(image, ax=grid, shrink=0.8, label="needles found")
    return png_of(figure)


def _is_cell(score: Score, metric: str) -> bool:
    return score.task == "needle" and score.metric == metric and {"depth", "length"} <= score.subset.keys()


def _map(axes: Any, found: Mapping[tuple[int, int], float]) -> Any:
    depths, lengths = (sorted({place[i] for place in found}) for i in (0, 1))
    values = [[found.get((depth, length), float("nan")) for length in lengths] for depth in depths]
    image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(depths)), depths)
    axes.set(xlabel="tokens of context", ylabel="depth of the needle, %")
    for row, column in ((r, c) for r in range(len(depths)) for c in range(len(lengths))):
        axes.text(column, row, f"{values[row][column]:.0%}", ha="center", va="center", fontsize=7)
    return image


def recovery_plot(models: Sequence[Mapping[str, Any]], lines: Sequence[Line]) -> bytes | None:
    """PNG: recovery of every whole task with one standard error, one series per compressed model."""
    shown = [line for line in lines if line.headline and any(e and e.recovery.value is not None for e in line.others)]
    if not shown:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.5 * len(shown)), dpi=130, layout="constrained")
    series = len(models) - 1
    for index, model in enumerate(models[1:]):
        entries = [(row, line.others[index]) for row, line in enumerate(shown)]
        points = [(row, entry.recovery) for row, entry in entries if entry and entry.recovery.value is not None]
        heights = [row + 0.5 * (index + 0.5) / series - 0.25 for row, _ in points]
        errors = [100 * (recovery.stderr or 0) for _, recovery in points]
        values = [100 * (recovery.value or 0) for _, recovery in points]
        axes.errorbar(values, heights, xerr=errors, fmt="o", markersize=4, capsize=2, label=model["name"])
    axes.set_yticks(range(len(shown)), [f"{line.title} ({line.metric})" for line in shown], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(100, color="gray", linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set(xlim=(min(low, 98), max(high, 101)), xlabel="recovery, % of the dense model (bars: one standard error)")
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return png_of(figure)
