"""Does every kernel compile for every chip and served shape, without spilling registers and within shared memory?

``python -m benchmarks.kernels.check [--arch sm_90 ...] [--layers NAME ...] [--recommended] [--rows FILE]`` compiles
ahead of time, without a GPU, and prints registers per thread, stack (where registers are spilled to), shared memory and
CPU seconds of each kernel as it is compiled. Exits with 1 where a kernel does not compile or takes more than a minute,
takes more shared (or tensor) memory than a program of the chip may, has any stack in a recommended shape, or loads
tiles while it waits although it claims not to; and where ``known_failures`` and this no longer agree. It does not say
how fast a kernel is. ``make kernels-check`` runs it with the newest and the oldest Triton that is supported.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.errors import TritonError

from benchmarks.common.provenance import provenance
from benchmarks.kernels.codec_layers import CODEC_LAYERS, CodecLayer, codec_calls
from benchmarks.kernels.compile_ahead import Call, calls_of, compile_call, resources
from benchmarks.kernels.gpus import CHIPS, one_of
from benchmarks.kernels.known_failures import KNOWN, Failure, Verdict, judged
from benchmarks.kernels.layers import RECOMMENDED as OF_LATENTS
from benchmarks.kernels.layers import SERVED_LAYERS, SERVED_PACKED_LAYERS, WITHOUT_FREQUENCIES, Layer
from benchmarks.kernels.tile_loads import synchronous_tile_loads

LATENT_LAYERS = SERVED_LAYERS | SERVED_PACKED_LAYERS | WITHOUT_FREQUENCIES
LAYERS: dict[str, Layer | CodecLayer] = {**LATENT_LAYERS, **CODEC_LAYERS}
RECOMMENDED = OF_LATENTS | frozenset(CODEC_LAYERS)
PROCESSES = 2
TENSOR_MEMORY = 512  # columns, of a multiprocessor of sm_100
LONGEST = 60  # CPU seconds of one compilation
PIPELINED = frozenset(("prefill_kernel", "decode_codes_kernel"))  # that claim to wait for no tile in their loops
Row = dict[str, Any]
Job = tuple[str, str, int]  # chip, layer, number of the call


@cache
def calls(arch: str, name: str) -> list[Call]:
    layer = LAYERS[name]
    return codec_calls(layer, CHIPS[arch]) if isinstance(layer, CodecLayer) else calls_of(layer, CHIPS[arch])


def named(job: Job) -> Row:
    """What is known of a kernel before it is compiled."""
    arch, name, number = job
    kernel, arguments = calls(arch, name)[number]
    row = {"triton": triton.__version__, "arch": arch, "layer": name, "kernel": kernel.__name__}
    row |= {"queries": arguments["QUERIES"]} if "QUERIES" in arguments else {}
    return row | {"limit": CHIPS[arch].shared_memory, "recommended": name in RECOMMENDED}


def cpu_seconds() -> float:
    """Of this process and of those that it waited for, as the assembler."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def compiled_row(job: Job) -> Row:
    """A kernel's resources, or the ``error`` that its compilation ends in."""
    row, start = named(job), cpu_seconds()
    try:
        compiled = compile_call(*calls(*job[:2])[job[2]], job[0])
    except (TritonError, RuntimeError) as error:
        return row | {"error": str(error).strip().splitlines()[-1]}
    seconds = round(cpu_seconds() - start, 2)
    waiting = synchronous_tile_loads(compiled.asm["ttgir"])
    return row | resources(compiled) | {"seconds": seconds, "synchronous_loads": waiting}


def row_of(future: Future, kernel: Row) -> Row:
    """What ``compiled_row`` gave; a compiler that ended its process is an error of its ``kernel``, too."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        return kernel | {"error": str(error)}


def problems(row: Row) -> dict[str, str]:
    """What is wrong with a kernel, by kind; empty where nothing is."""
    if "error" in row:
        return {"error": f"does not compile: {row['error']}"}
    found = {
        "shared memory": row["shared_memory"] > row["limit"]
        and f"needs more shared memory than {row['limit'] // 1024} KiB",
        "tensor memory": row["tensor_memory"] > TENSOR_MEMORY
        and f"needs more tensor memory than {TENSOR_MEMORY} columns",
        "stack": row["stack"] and "spills",
        "seconds": row["seconds"] > LONGEST and f"compiles for more than {LONGEST} s",
        "waiting": row["kernel"] in PIPELINED and row["synchronous_loads"] and "waits for tiles in a loop",
    }
    return {kind: text for kind, text in found.items() if text}


def kernel_name(row: Row) -> str:
    return row["kernel"] + (f" ({row['queries']})" if "queries" in row else "")


def place(row: Row) -> tuple[str, str, str, str]:
    """Triton without its patch, chip, layer and kernel."""
    return ".".join(row["triton"].split(".")[:2]), row["arch"], row["layer"], kernel_name(row)


def failures(row: Row) -> list[Failure]:
    """Spilling and waiting are allowed in shapes that are served but not recommended."""
    allowed = () if row["layer"] in RECOMMENDED else ("stack", "waiting")
    return [Failure(*place(row), kind) for kind in problems(row) if kind not in allowed]


def judge(rows: Sequence[Row]) -> Verdict:
    return judged((each for row in rows for each in failures(row)), map(place, rows), KNOWN)


def line(row: Row) -> str:
    name = row["layer"] + ("*" if row["layer"] in RECOMMENDED else "")
    numbers = "".rjust(42)
    if "error" not in row:
        numbers = f"{row['registers']:9} {row['stack']:6} {row['shared_memory'] / 1024:10.1f}"
        numbers += f" {row['synchronous_loads']:6} {row['seconds']:7.1f}"
    found = failures(row)
    mark = "FAILED: " if set(found) - set(KNOWN) else "known: " if found else ""
    return (
        f"{row['arch']:7} {name:27} {kernel_name(row):24} {numbers}  {mark}{'; '.join(problems(row).values())}".rstrip()
    )


HEAD = f"{'chip':7} {'layer':27} {'kernel':24} {'registers':>9} {'stack':>6} {'shared KiB':>10}  waits seconds"


def check(arches: Sequence[str], names: Sequence[str], processes: int = PROCESSES) -> Iterator[tuple[int, int, Row]]:
    """How many kernels are done, of how many, and the row of the newest, in the order of their end."""
    jobs = [(arch, name, number) for arch in arches for name in names for number in range(len(calls(arch, name)))]
    with ProcessPoolExecutor(
        max(1, min(processes, len(jobs))), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        futures = {pool.submit(compiled_row, job): named(job) for job in jobs}
        for done, future in enumerate(as_completed(futures), start=1):
            yield done, len(jobs), row_of(future, futures[future])


def told(options: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    """All rows, each printed, and appended to ``--rows``, as soon as there is it."""
    rows = []
    print(f"Triton {triton.__version__}\n{'':11} {HEAD}", flush=True)
    for done, count, row in check(options.arch, names, options.processes):
        print(f"{done:5}/{count:<5} {line(row)}", flush=True)
        rows.append(row)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(row | {"problems": list(problems(row))}) + "\n")
    return rows


def summary(rows: Sequence[Row], verdict: Verdict) -> str:
    lines = ["* recommended; (n): queries per request; waits: tiles of a loop that are not loaded ahead"]
    lines += [f"FAILED: {failure}" for failure in verdict.new]
    lines += [f"FAILED: listed in known_failures and fine now, take it out: {entry}" for entry in verdict.mended]
    arches = ", ".join(sorted({row["arch"] for row in rows}))
    failed = len(verdict.new) + len(verdict.mended)
    return "\n".join(
        [*lines, f"{len(rows)} kernels compiled for {arches}, {failed} failed, {len(verdict.known)} known failures"]
    )


def parsed(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the layers that they choose."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.check", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", type=one_of(CHIPS, "chip"), default=list(CHIPS), metavar="NAME")
    parser.add_argument(
        "--layers", nargs="+", type=one_of(dict.fromkeys(LAYERS), "layer"), default=list(LAYERS), metavar="NAME"
    )
    parser.add_argument("--recommended", action="store_true", help="only recommended layers")
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"at a time (default {PROCESSES})")
    parser.add_argument("--fresh", action="store_true", help="compile what is cached, too, so that seconds are right")
    parser.add_argument("--rows", type=Path, help="a file that gets one line of JSON per kernel as it is compiled")
    parser.add_argument("--json", type=Path, help="where to write the rows in order, with their provenance")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    names = [name for name in options.layers if not options.recommended or name in RECOMMENDED]
    if not names:
        parser.error(f"none of these layers is recommended; recommended are {', '.join(sorted(RECOMMENDED))}")
    return options, names


def main() -> None:
    options, names = parsed()
    with tempfile.TemporaryDirectory() as folder:
        if options.fresh:
            os.environ["TRITON_CACHE_DIR"] = folder
        found = told(options, names)
    rows = sorted(found, key=lambda row: (options.arch.index(row["arch"]), names.index(row["layer"])))
    verdict = judge(rows)
    print(summary(rows, verdict))
    if options.json:
        marked = [row | {"failures": [failure.kind for failure in failures(row)]} for row in rows]
        options.json.write_text(json.dumps({"rows": marked, "provenance": provenance()}, indent=1) + "\n")
    sys.exit(0 if verdict.passed else 1)


if __name__ == "__main__":
    main()
