"""Does every kernel compile for every chip and served shape, without spilling registers and within shared memory?

``python -m benchmarks.kernels.check [--arch sm_90 ...] [--layers NAME ...] [--recommended] [--json FILE]`` compiles
ahead of time, without a GPU, and prints registers per thread, stack (where registers are spilled to) and shared memory
per kernel. Exits with 1 where a kernel does not compile, takes more shared (or tensor) memory than a program of the
chip may, or has any stack in a recommended shape. It does not say how fast a kernel is.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from triton.errors import TritonError

from benchmarks.common.provenance import provenance
from benchmarks.kernels.compile_ahead import calls_of, compile_call, resources
from benchmarks.kernels.gpus import CHIPS, one_of
from benchmarks.kernels.layers import RECOMMENDED, SERVED_LAYERS, SERVED_PACKED_LAYERS, WITHOUT_FREQUENCIES

LAYERS = SERVED_LAYERS | SERVED_PACKED_LAYERS | WITHOUT_FREQUENCIES
PROCESSES = 2
TENSOR_MEMORY = 512  # columns, of a multiprocessor of sm_100
Row = dict[str, Any]


def compiled_rows(arch: str, name: str) -> list[Row]:
    """One row per kernel of a layer, with its resources or the ``error`` that its compilation ends in."""
    device, rows = CHIPS[arch], []
    for kernel, arguments in calls_of(LAYERS[name], device):
        row = {"arch": arch, "layer": name, "kernel": kernel.__name__, "limit": device.shared_memory}
        row |= {"queries": arguments["QUERIES"]} if "QUERIES" in arguments else {}
        try:
            rows.append(row | resources(compile_call(kernel, arguments, arch)))
        except (TritonError, RuntimeError) as error:
            rows.append(row | {"error": str(error).strip().splitlines()[-1]})
    return rows


def rows_of(future: Future, arch: str, name: str) -> list[Row]:
    """What ``compiled_rows`` gave; a compiler that ended its process is an error, too."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        return [{"arch": arch, "layer": name, "kernel": "any", "limit": CHIPS[arch].shared_memory, "error": str(error)}]


def verdict(row: Row) -> str:
    """What is wrong with a kernel; empty where nothing is."""
    if "error" in row:
        return f"does not compile: {row['error']}"
    if row["shared_memory"] > row["limit"]:
        return f"needs more shared memory than {row['limit'] // 1024} KiB"
    if row["tensor_memory"] > TENSOR_MEMORY:
        return f"needs more tensor memory than {TENSOR_MEMORY} columns"
    return "spills" if row["stack"] else ""


def fails(row: Row) -> bool:
    """Spilling is allowed in shapes that are served but not recommended."""
    found = verdict(row)
    return bool(found) and (found != "spills" or row["layer"] in RECOMMENDED)


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'chip':7} {'layer':27} {'kernel':24} {'registers':>9} {'stack':>6} {'shared KiB':>10}"]
    for row in rows:
        name = row["layer"] + ("*" if row["layer"] in RECOMMENDED else "")
        numbers = "".rjust(27)
        if "error" not in row:
            numbers = f"{row['registers']:9} {row['stack']:6} {row['shared_memory'] / 1024:10.1f}"
        mark = "FAILED: " if fails(row) else ""
        kernel = row["kernel"] + (f" ({row['queries']})" if "queries" in row else "")
        lines.append(f"{row['arch']:7} {name:27} {kernel:24} {numbers}  {mark}{verdict(row)}".rstrip())
    return "\n".join([*lines, "* recommended; (n): queries per request"])


def check(arches: Sequence[str], names: Sequence[str]) -> list[Row]:
    """Rows of every pair, in that order, from at most ``PROCESSES`` processes."""
    pairs = [(arch, name) for arch in arches for name in names]
    with ProcessPoolExecutor(min(PROCESSES, len(pairs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(compiled_rows, *pair) for pair in pairs]
        return [row for future, pair in zip(futures, pairs, strict=True) for row in rows_of(future, *pair)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.check", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", type=one_of(CHIPS, "chip"), default=list(CHIPS), metavar="NAME")
    parser.add_argument("--layers", nargs="+", type=one_of(LAYERS, "layer"), default=list(LAYERS), metavar="NAME")
    parser.add_argument("--recommended", action="store_true", help="only recommended layers")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    names = [name for name in options.layers if not options.recommended or name in RECOMMENDED]
    if not names:
        parser.error(f"none of these layers is recommended; recommended are {', '.join(sorted(RECOMMENDED))}")
    rows = check(options.arch, names)
    print(table(rows))
    failed = [row for row in rows if fails(row)]
    print(f"{len(rows)} kernels compiled for {', '.join(options.arch)}, {len(failed)} failed")
    if options.json:
        marked = [row | {"recommended": row["layer"] in RECOMMENDED, "failed": fails(row)} for row in rows]
        options.json.write_text(json.dumps({"rows": marked, "provenance": provenance()}, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
