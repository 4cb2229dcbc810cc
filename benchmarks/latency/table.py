"""The table of a latency benchmark, from its rows."""

from typing import Any

Row = dict[str, Any]
DENSE = ("flash_attention_3", "vllm_triton", "torch_sdpa")  # arms of 16 bits, the fastest of which speed-ups are over


def fastest_dense(rows: list[Row], context: int, batch: int = 1) -> float | None:
    """Median seconds of the fastest dense arm for that batch; None where none was timed."""
    timed = [row for row in rows if (row["context"], row["batch"]) == (context, batch) and "missing" not in row]
    return min((row["seconds"]["median"] for row in timed if row["arm"] in DENSE), default=None)


def line(row: Row, dense: float | None) -> str:
    start = f"{row['batch']:5} {row['context']:8} {row['arm']:22}"
    if "missing" in row:
        return f"{start} missing: {row['missing']}"
    seconds = row["seconds"]
    quartiles = f"{1e6 * seconds['low']:.1f} - {1e6 * seconds['high']:.1f}"
    rates = f"{row['bytes_per_second'] / 1e9:8.1f} {row['flops_per_second'] / 1e12:8.2f}"
    share = "" if row["share_of_bound"] is None else f"{row['share_of_bound']:.0%}"
    speed_up = "" if dense is None else f"{dense / seconds['median']:.2f}x"
    return f"{start} {1e6 * seconds['median']:10.1f} {quartiles:>19} {rates} {share:>8} {speed_up:>10}"


def table(rows: list[Row]) -> str:
    """One line per row; arms that are missing say why."""
    head = f"{'batch':>5} {'context':>8} {'arm':22} {'median us':>10} {'quartiles us':>19} {'GB/s':>8} {'TFLOP/s':>8}"
    lines = [line(row, fastest_dense(rows, row["context"], row["batch"])) for row in rows]
    return "\n".join([f"{head} {'of bound':>8} {'over dense':>10}", *lines])
