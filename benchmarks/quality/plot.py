"""The tables and the plot of ``benchmarks.quality.table``, from its rows."""

from pathlib import Path

from benchmarks.common.output import pyplot, save, table

BUDGETS = (2, 3, 4, 5, 6, 8, 10)  # times fewer bytes than the dense model
TIMES_FEWER = (1, 2, 3, 4, 6, 8, 12, 24)  # bytes: ticks of the plot


def increase(row: dict, rows: list[dict]) -> float:
    """Perplexity over the dense model's, in per cent."""
    return 100 * (row["perplexity"] / rows[0]["perplexity"] - 1)


def compression(row: dict, rows: list[dict]) -> float:
    return rows[0]["bytes_per_token"] / row["bytes_per_token"]


def title(row: dict) -> str:
    if row["arm"] != "palu":
        return row["arm"]
    if "budget" in row:
        return f"palu chosen for {row['budget']:g}x, {row['bits']} bits"
    mixed = ", mixed" if row["rotation"] == "hadamard" else ""
    return f"palu {row['ratio']:.0%}, {row['bits']} bits{mixed}"


def best(rows: list[dict], budget: float) -> dict | None:
    """The lowest divergence among settings with at least ``budget`` times fewer bytes."""
    fitting = [row for row in rows[1:] if row["arm"] == "palu" and compression(row, rows) >= budget]
    return min(fitting, key=lambda row: row["kl"], default=None)


def budget_table(rows: list[dict]) -> str:
    """At each budget the best setting."""
    found = [(budget, row) for budget in BUDGETS if (row := best(rows, budget)) is not None]
    lines = [
        [f"{budget}x", f"{title(row)} ({compression(row, rows):.1f}x)",
         f"{row['perplexity']:.2f} ({increase(row, rows):+.1f} %)", f"{row['kl']:.4f}"]
        for budget, row in found
    ]  # fmt: skip
    return table(["at least", "best setting", "perplexity", "KL"], lines)


def palu_table(rows: list[dict]) -> str:
    """Perplexity of every palu arm, mixed: rank ratios down, bits across, bytes per token in brackets."""
    palu = [row for row in rows if "ratio" in row]
    arms = {(r["ratio"], r["bits"]): r for r in palu}
    arms |= {(r["ratio"], r["bits"]): r for r in palu if r["rotation"] == "hadamard"}
    columns = list(dict.fromkeys(bits for _, bits in arms))
    lines = []
    for ratio in dict.fromkeys(ratio for ratio, _ in arms):
        cells = [f"{arms[ratio, b]['perplexity']:.2f} ({arms[ratio, b]['bytes_per_token']})" for b in columns]
        lines.append([f"{ratio:.0%}", *cells])
    return table(["kept", *(f"{bits} bits" for bits in columns)], lines)


def tables(rows: list[dict]) -> str:
    return budget_table(rows) + "\n\n" + palu_table(rows)


def plot(rows: list[dict], target: Path) -> None:
    """Increase of perplexity against bytes per token, one line per palu rank ratio, points for the others."""
    figure, axes = pyplot.subplots(figsize=(7, 4.4), dpi=150)
    dense = rows[0]["bytes_per_token"]
    palu = [row for row in rows if "ratio" in row and (row["rotation"] == "hadamard" or row["bits"] == "16")]
    for ratio in dict.fromkeys(row["ratio"] for row in palu):
        points = sorted(
            (r["bytes_per_token"], increase(r, rows)) for r in palu if r["ratio"] == ratio and "/" not in r["bits"]
        )
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"palu, {ratio:.0%} of the rank")
    chosen = sorted((r["bytes_per_token"], increase(r, rows)) for r in rows if "budget" in r)
    if chosen:
        label = "palu, chosen for the bytes"
        axes.plot(*zip(*chosen, strict=True), marker="D", markersize=4, linewidth=2, color="crimson", label=label)
    points = sorted((r["bytes_per_token"], increase(r, rows)) for r in rows if r["arm"].startswith("fp8"))
    if points:
        axes.plot(*zip(*points, strict=True), marker="x", linestyle=":", color="black", label="fp8 in vLLM")
    axes.set(
        xscale="log",
        xlabel="KV bytes per token, and times fewer than dense",
        ylabel="perplexity over dense, %",
        ylim=(-2, 40),
    )
    ticks = [dense / times for times in TIMES_FEWER]
    axes.set_xticks(ticks, [f"{tick:.0f}\n{times}x" for tick, times in zip(ticks, TIMES_FEWER, strict=True)])
    axes.minorticks_off()
    axes.axhline(5, color="gray", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save(figure, target)
