"""This module draws ranks and errors per layer, where matplotlib is installed."""

from pathlib import Path
from typing import Any

PLOT = "palu_report.png"


def write_plot(report: dict[str, Any], directory: Path) -> None:
    """Writes ``palu_report.png``; does nothing without matplotlib, which is no dependency."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    ranks, errors = figure.subplots(2, 1, sharex=True)
    layers = range(len(report["rank_k"]))
    for axis, kind, label in ((ranks, "rank", "rank per group"), (errors, "relative_error", "relative error")):
        axis.plot(layers, report[f"{kind}_k"], marker="o", label="keys")
        axis.plot(layers, report[f"{kind}_v"], marker="s", label="values")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for full in sorted({report["full_rank_k"], report["full_rank_v"]}):
        ranks.axhline(full, linestyle="--", color="grey", label=f"full rank {full}")
    ranks.legend()
    errors.set_xlabel("layer")
    figure.savefig(directory / PLOT, dpi=120, metadata={"Software": None})
