"""Which tiles leave no register on the stack? Compiles candidates ahead of time and stores the first that does.

``python -m benchmarks.kernels.fit_registers [--arch sm_80 sm_89] [--layers NAME ...]`` looks at every attention kernel
of the recommended layers that spills in the tiles of the formulas, and adds what it finds to
``palu_vllm/kernels/tuned/<arch>.json``, which the kernels read on such a chip. No GPU is needed and nothing is timed:
tiles that ``benchmarks.latency.tune`` times on a GPU come first. Exits with 1 where no candidate helps.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import log2
from typing import Any

from triton.errors import TritonError

from benchmarks.kernels.check import PROCESSES
from benchmarks.kernels.compile_ahead import Call, compile_call, launched, resources, store_and_attend
from benchmarks.kernels.gpus import CHIPS, one_of
from benchmarks.kernels.layers import RECOMMENDED, RECOMMENDED_LAYERS, SERVED_PACKED_LAYERS
from benchmarks.latency.tune import merged
from palu_vllm.kernels.gpu.tiling import SMALLEST_TILE, Device
from palu_vllm.kernels.gpu.tuned import ALLOWED, Tiles, file_of, tuned_key

LAYERS = {name: layer for name, layer in (RECOMMENDED_LAYERS | SERVED_PACKED_LAYERS).items() if name in RECOMMENDED}
KERNELS = {"decode": "decode_split_kernel", "prefill": "prefill_kernel"}
QUERIES = (("decode", 1), ("decode", 4), ("prefill", 64))  # of one request, as ``make kernels-check`` compiles


@dataclass(frozen=True)
class Job:
    """One kernel of one layer on one chip."""

    arch: str
    layer: str
    kind: str
    queries: int

    @property
    def key(self) -> str:
        layer = LAYERS[self.layer]
        decoded = (self.queries, layer.has_key_norm) if self.kind == "decode" else ()
        return tuned_key(self.kind, layer.shape, 2, *decoded)

    def call(self, device: Device) -> Call:
        step = partial(store_and_attend, LAYERS[self.layer], self.queries, device)
        return next(call for call in launched(step) if call[0].__name__ == KERNELS[self.kind])


def tiles_of(kind: str, call: Call) -> Tiles:
    """Those that a kernel is launched with."""
    given = call[1]
    tiles = Tiles(given["TILE_TOKENS"], given["num_stages"], given["num_warps"])
    if kind == "prefill":
        return tiles
    pairs = given["TILE_HALF"]
    return replace(tiles, rank=given["TILE_RANK"], pairs=pairs, values=given["TILE_VALUES"])


def candidates(tiles: Tiles) -> Iterator[Tiles]:
    """Other tiles, those that cost least first: steps of fewer tokens read ``k_up`` more often and come last, then what
    differs least from the formulas'.
    """
    steps = product((tiles.tokens, tiles.tokens // 2), ALLOWED["num_stages"][:3])
    found = [replace(tiles, tokens=tokens, num_stages=stages) for tokens, stages in steps]
    if tiles.rank and tiles.pairs and tiles.values:  # of decoding
        ranks = [tiles.rank >> halvings for halvings in range(4)]
        values = (tiles.values, 2 * tiles.values, tiles.values // 2)
        sizes = list(product(ranks, (tiles.pairs, tiles.pairs // 2), values))
        found = [replace(each, rank=r, pairs=p, values=v) for each in found for r, p, v in sizes]
    smallest = [min(size for size in (x.tokens, x.rank, x.pairs, x.values) if size is not None) for x in found]
    possible = [x for x, size in zip(found, smallest, strict=True) if size >= SMALLEST_TILE and x != tiles]
    return iter(sorted(possible, key=lambda x: (-x.tokens, difference(tiles, x))))


def difference(tiles: Tiles, other: Tiles) -> float:
    """How often sizes were halved or doubled."""
    new = other.stored()
    return sum(abs(log2(new[name] / size)) for name, size in tiles.stored().items())


def stack_of(job: Job, device: Device) -> int | None:
    """Bytes per thread; None where the kernel does not compile or takes more shared memory than there is."""
    try:
        used = resources(compile_call(*job.call(device), job.arch))
    except (TritonError, RuntimeError):
        return None
    return used["stack"] if used["shared_memory"] <= device.shared_memory else None


def fitted(job: Job) -> dict[str, Any]:
    """The stack with the formulas' tiles and with each candidate up to the first without one, the ``winner``."""
    device = replace(CHIPS[job.arch], tuned=())
    stack, winner, tried = stack_of(job, device), None, []
    if stack:
        for tiles in candidates(tiles_of(job.kind, job.call(device))):
            left = stack_of(job, replace(device, tuned=((job.key, tiles),)))
            tried.append({**tiles.stored(), "stack": left})
            if left == 0:
                winner = tiles.stored()
                break
    return {"key": job.key, "layer": job.layer, "formulas": stack, "candidates": tried, "winner": winner}


def said(job: Job, result: dict[str, Any]) -> str:
    found = result["winner"] or ("formulas" if result["formulas"] == 0 else "NONE")
    return f"{job.arch} {job.layer} {job.kind} of {job.queries}: {found}, after {len(result['candidates'])} candidates"


def fit(arch: str, names: list[str]) -> bool:
    """Writes the file of one chip; whether all kernels could be fitted."""
    jobs = [Job(arch, name, kind, queries) for name in names for kind, queries in QUERIES]
    results = []
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, result in zip(jobs, pool.map(fitted, jobs), strict=True):
            print(said(job, result), flush=True)
            results.append(result)
    spilling = [result for result in results if result["formulas"] != 0]
    content = merged(file_of(arch), arch, results, "compiled")
    content["tried"] = [result for result in content["tried"] if result["formulas"] != 0]
    if content["tiles"]:
        file_of(arch).parent.mkdir(exist_ok=True)
        file_of(arch).write_text(json.dumps(content, indent=1) + "\n")
    return all(result["winner"] for result in spilling)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.fit_registers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arch", nargs="+", type=one_of(CHIPS, "chip"), default=list(CHIPS), metavar="NAME")
    parser.add_argument("--layers", nargs="+", type=one_of(LAYERS, "layer"), default=list(LAYERS), metavar="NAME")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    fits = [fit(arch, options.layers) for arch in options.arch]
    sys.exit(0 if all(fits) else 1)


if __name__ == "__main__":
    main()
