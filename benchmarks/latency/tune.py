"""Which tiles are fastest on this GPU? Times a few candidates per layer and stores the winners for the kernels.

``python -m benchmarks.latency.tune [--shape llama-3.1-8b --ranks 256/256 ...] [--context N]`` times decoding of one and
of four queries per request and prefill of ``--context`` tokens, each with the tiles of the formulas and with candidates
beside them, and adds the winners to ``palu_vllm/kernels/tuned/<gpu>.json``, which the kernels read when they are built.
A candidate that does not run, or whose result differs from that of the formulas, is left out. ``--smoke`` tries it on a
CPU, in Triton's interpreter, and writes only to ``--out``.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.provenance import provenance
from benchmarks.kernels.layers import MODELS
from benchmarks.kernels.roofline import add_layer_options, layer_of, positive
from benchmarks.kernels.roofline_model import Batch
from benchmarks.latency.attention_case import Case
from benchmarks.latency.harness import SMOKE, SMOKE_SHAPES, refusal
from benchmarks.latency.timing import CudaTimer, Spread, WallTimer
from palu_vllm.kernels.gpu.tiling import Device
from palu_vllm.kernels.gpu.tuned import ALLOWED, FORMAT, Tiles, file_of, tuned_key
from palu_vllm.kernels.interface import PagedBatch

DECODED = (1, 4)  # queries per request
WORTH = 0.98  # of the formulas' time: less gain is noise
CANDIDATES = {
    "decode": [Tiles(*each) for each in itertools.product((64, 128), (1, 2), (4, 8))],
    "prefill": [Tiles(*each) for each in itertools.product((32, 64, 128), (2, 3), (4, 8))],
}


def steps(case: Case, queries: int) -> PagedBatch:
    """The case with the last ``queries`` tokens of every request as queries."""
    starts = queries * torch.arange(case.batch.requests + 1, dtype=torch.int32, device=case.device)
    return replace(case.paged, query_start_loc=starts, max_query_len=queries)


def seconds(
    arm: Any, batch: PagedBatch, query: torch.Tensor, device: Device, options: argparse.Namespace, timer: Any
) -> tuple[float, torch.Tensor]:
    """The median time of ``attend`` in tiles for ``device``, and its result."""
    from palu_vllm.kernels.gpu.launch import TritonAttention

    attention = TritonAttention(arm.shape, arm.rebuild, device=device)
    out = torch.empty(*query.shape[:2], arm.shape.rank_v, dtype=query.dtype, device=query.device)
    taken = timer.seconds(
        lambda: attention.attend(query, arm.cache, batch, out), warmup=options.warmup, repeats=options.repeats
    )
    return Spread.of(taken).median, out


def beside(stored: Tiles | None, candidates: Sequence[Tiles]) -> list[Tiles]:
    """What is stored already, for this GPU or its architecture, then the candidates with its other sizes."""
    if stored is None:
        return list(candidates)
    given = [{name: getattr(tiles, name) for name in ALLOWED} for tiles in candidates]
    return list(dict.fromkeys([stored, *(replace(stored, **each) for each in given)]))


def fastest(
    arm: Any, case: Case, kind: str, queries: int, device: Device, options: argparse.Namespace, timer: Any
) -> dict[str, Any]:
    """The times of one kernel of a layer by tiles, and the tiles worth storing: None where the formulas' are."""
    from triton.errors import TritonError

    # what a kernel's tiles depend on beside its shape; those of prefill on nothing
    decoded = (queries, arm.rebuild.k_norm is not None) if kind == "decode" else ()
    key, batch = tuned_key(kind, arm.shape, case.dtype.itemsize, *decoded), steps(case, queries)
    query = case.random(case.batch.requests * queries, arm.shape.num_heads, arm.shape.head_dim)
    usual, expected = seconds(arm, batch, query, replace(device, tuned=()), options, timer)
    times = {}
    for tiles in beside(device.tiles(key), CANDIDATES[kind][: options.candidates]):
        try:
            taken, out = seconds(arm, batch, query, replace(device, tuned=((key, tiles),)), options, timer)
        except (TritonError, RuntimeError, AssertionError, ValueError):
            continue
        if (out.float() - expected.float()).norm() <= arm.tolerance * expected.float().norm():
            times[tiles] = taken
    best = min(times, key=times.__getitem__, default=None)
    winner = best.stored() if best is not None and times[best] < WORTH * usual else None
    rows = [tiles.stored() | {"seconds": taken} for tiles, taken in times.items()]
    return {"key": key, "formulas": usual, "candidates": rows, "winner": winner}


def tune(options: argparse.Namespace, case: Case, timer: Any) -> list[dict[str, Any]]:
    from benchmarks.latency.latent_arms import Palu
    from palu_vllm.kernels.gpu.launch import device_of

    arm, device = Palu(case, options.bits), device_of(case.device)
    work = [("decode", queries) for queries in DECODED] + [("prefill", case.batch.context)]
    return [fastest(arm, case, kind, queries, device, options, timer) for kind, queries in work]


def merged(path: Path, gpu: str, results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What the file holds, with these kernels' winners in the place of former ones."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tiles": {}, "tried": []}
    again = {result["key"] for result in results}
    tiles = {key: each for key, each in held["tiles"].items() if key not in again}
    tried = [result for result in held["tried"] if result["key"] not in again] + results
    tiles |= {result["key"]: result["winner"] for result in results if result["winner"]}
    return {"format": FORMAT, "gpu": gpu, "kind": kind, "tiles": tiles, "tried": tried, "provenance": provenance()}


def parser_of(smoke: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency.tune", description=__doc__.splitlines()[0])
    add_layer_options(parser, "tiny" if smoke else "llama-3.1-8b", SMOKE_SHAPES if smoke else MODELS)
    parser.add_argument("--batch", type=positive, default=1, help="requests (default 1)")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4, 3, 2), default=16)
    parser.add_argument("--context", type=positive, default=40 if smoke else 8192)
    parser.add_argument("--candidates", type=positive, help="of each kernel, at most (default: all)")
    parser.add_argument("--repeats", type=positive, default=1 if smoke else 30)
    parser.add_argument("--warmup", type=positive, default=1 if smoke else 5)
    parser.add_argument("--out", type=Path, help="JSON file (default: that of this GPU in palu_vllm/kernels/tuned/)")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    if smoke:
        parser.set_defaults(ranks=(16, 24))
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command. Exits with 2 and one sentence where there is no GPU."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = parser_of("--smoke" in arguments)
    options = parser.parse_args(arguments)
    reason = None if options.smoke else refusal()
    if reason:
        parser.exit(2, f"{parser.prog}: {reason}\n")
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    device = torch.device("cpu" if options.smoke else "cuda")
    layer, dtype = layer_of(options, parser, SMOKE_SHAPES), torch.float16 if options.smoke else torch.bfloat16
    case = Case(
        layer, SMOKE_SHAPES[options.shape].hidden_size, Batch(options.batch, options.context), dtype, device, 16
    )
    with torch.inference_mode():
        results = tune(options, case, WallTimer() if options.smoke else CudaTimer(device))
    gpu = SMOKE if options.smoke else torch.cuda.get_device_name()
    for result in results:
        print(f"{result['key']}: {result['winner'] or 'formulas'} of {len(result['candidates'])} candidates")
    out = options.out or (None if options.smoke else file_of(gpu))
    if out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(
            json.dumps(merged(out, gpu, results, SMOKE if options.smoke else "measurement"), indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
