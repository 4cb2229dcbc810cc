"""What bounds decode attention over latents on a GPU, and by how much can it beat dense attention at most?

``python -m benchmarks.kernels.roofline --gpu h200 --shape llama-3.1-8b --ranks 128/384 [--bits 4] [--context N]
[--batch N] [--codec 4]`` counts with the tiles that the kernels would take and measures nothing (``roofline_model.py``
says what is counted). "Rebuild" forms every key; "absorbed" scores slow rotary pairs without it. Rows named "in tiles"
are what the kernel does with the plan of ``decode/plan.py``; those named "at least" count the latents and that
arithmetic alone, absorbed as ``plan_absorption`` chooses: the bound whatever the tiles.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.kernels.gpus import GPUS, Gpu, one_of
from benchmarks.kernels.layers import MODELS, Layer, Model
from benchmarks.kernels.roofline_model import (
    NUMBER,
    Absorbing,
    Batch,
    Work,
    codec_work,
    decode_work,
    dense_work,
    latents_and_rebuild,
    unpacking,
)
from palu_vllm.format.latent_format import BITS
from palu_vllm.kernels.absorbed import plan_absorption
from palu_vllm.kernels.gpu.decode.plan import plan_absorbed_tiles
from palu_vllm.kernels.gpu.tiling import Tiling, decode_splits, decode_tiling

ABSORPTION_TOLERANCE = 5e-4  # of a rotation: a quarter of what rounding to bfloat16 changes
CODEC_RATIO = 4.0  # dense bytes over those of a codec's slots
ABSORPTION_TILES = (16, 32, 64, 128)  # tokens


@dataclass(frozen=True)
class Bound:
    """One line of the table; times in seconds."""

    plan: str
    work: Work
    by: str
    seconds: float
    speed_up: float  # over dense attention in bfloat16


def absorption_of(layer: Layer, tolerance: float = ABSORPTION_TOLERANCE) -> Absorbing | None:
    """The cheapest plan for the layer's frequencies; None where whole keys are as cheap, or needed by a norm."""
    if layer.has_key_norm:
        return None
    plan = plan_absorption(layer.frequencies(), layer.shape.queries_per_kv, ABSORPTION_TILES, tolerance)
    return None if plan is None else Absorbing.of(plan)


def tiles_of(layer: Layer, gpu: Gpu) -> tuple[Tiling, Tiling]:
    """Of the decode kernel in bfloat16 that rebuilds whole keys, and of the plan that it takes; the same where that is
    to rebuild them.
    """
    whole = decode_tiling(layer.shape, NUMBER, gpu.device, has_key_norm=layer.has_key_norm)
    if layer.has_key_norm:
        return whole, whole
    return whole, plan_absorbed_tiles(layer.frequencies(), layer.shape, whole, torch.bfloat16, gpu.device).tiling


def unpacked(layer: Layer, batch: Batch, per_number: float) -> Work:
    """Of packed latents, each number of them once; nothing where they are 16 bits wide."""
    shape = layer.shape
    numbers = batch.tokens * (shape.num_groups_k * shape.rank_k + shape.num_groups_v * shape.rank_v)
    return unpacking(0 if shape.slot is None else numbers, per_number)


def bounds(layer: Layer, batch: Batch, gpu: Gpu, per_number: float = 0, codec: float = CODEC_RATIO) -> list[Bound]:
    """Dense attention, then rebuild and absorption, each at least and with the kernel's tiles, and a codec's slots in
    one ``codec``-th of the bytes. ``per_number`` instructions unpack a number.
    """
    shape, absorbing = layer.shape, absorption_of(layer)
    whole, planned = tiles_of(layer, gpu)
    unpacking_work = unpacked(layer, batch, per_number)
    plans = {
        "dense bf16": dense_work(shape, batch),
        "rebuild, at least": latents_and_rebuild(shape, batch) + unpacking_work,
        "rebuild, in tiles": decode_work(shape, batch, gpu, whole) + unpacking_work,
    }
    if absorbing:
        plans["absorbed, at least"] = latents_and_rebuild(shape, batch, absorbing) + unpacking_work
    if planned.terms:
        plans["absorbed, in tiles"] = decode_work(shape, batch, gpu, planned) + unpacking_work
    dense_bytes = 2 * shape.num_kv_heads * shape.head_dim * NUMBER
    plans["codec, at least"] = codec_work(shape, batch, round(dense_bytes / codec), per_number)
    dense = plans["dense bf16"].bound(gpu)[1]
    return [Bound(name, work, *work.bound(gpu), dense / work.bound(gpu)[1]) for name, work in plans.items()]


def table(found: list[Bound], gpu: Gpu) -> str:
    head = f"{'plan':20} {'memory us':>10} {'L2 us':>8} {'tensor us':>10} {'issue us':>9} {'bound us':>9}"
    lines = [f"{head} {'speed-up':>9}  bound by"]
    for bound in found:
        times = [1e6 * seconds for seconds in bound.work.seconds(gpu).values()]
        numbers = f"{times[0]:10.1f} {times[1]:8.1f} {times[2]:10.1f} {times[3]:9.1f} {1e6 * bound.seconds:9.1f}"
        lines.append(f"{bound.plan:20} {numbers} {bound.speed_up:8.2f}x  {bound.by}")
    return "\n".join(lines)


def ranks(text: str) -> tuple[int, int]:
    """For argparse: ``128/384``, ranks of K and V per group."""
    if not re.fullmatch(r"\d+/\d+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected ranks of K and V per group such as 128/384")
    rank_k, rank_v = map(int, text.split("/"))
    return rank_k, rank_v


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return int(text)


def add_layer_options(parser: argparse.ArgumentParser, shape: str, models: Mapping[str, Model] = MODELS) -> None:
    parser.add_argument("--shape", type=one_of(models, "shape"), default=shape, help=f"{', '.join(models)}")
    parser.add_argument("--ranks", type=ranks, default=(128, 384), help="of K and V per group (default 128/384)")
    parser.add_argument("--group-size", type=positive, default=4, help="KV heads per group (default 4)")


def layer_of(
    options: argparse.Namespace, parser: argparse.ArgumentParser, models: Mapping[str, Model] = MODELS
) -> Layer:
    """The layer of these options; one sentence for sizes that contradict each other."""
    try:
        rank_k, rank_v = options.ranks
        return models[options.shape].layer(rank_k, rank_v, options.group_size)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", type=one_of(GPUS, "GPU"), default="h200", help=", ".join(GPUS))
    add_layer_options(parser, "llama-3.1-8b")
    parser.add_argument("--bits", type=int, choices=BITS, default=16, help="of latents (default 16)")
    parser.add_argument("--batch", type=positive, default=1, help="requests (default 1)")
    parser.add_argument("--context", type=positive, default=65536, help="tokens per request (default 65536)")
    parser.add_argument("--instructions", type=float, default=3.0, help="that unpack one number (default 3)")
    parser.add_argument("--codec", type=float, default=CODEC_RATIO, help="fewer bytes than dense (default 4)")
    options = parser.parse_args(arguments)
    layer = layer_of(options, parser).in_bits(options.bits)
    gpu, batch = GPUS[options.gpu], Batch(options.batch, options.context)
    tiling = tiles_of(layer, gpu)[1]
    splits = decode_splits(layer.shape, tiling, batch.requests, batch.context, gpu.device)
    print(f"{options.shape}, ranks {options.ranks[0]}/{options.ranks[1]} per group of {options.group_size}, ", end="")
    print(f"{options.bits} bits, {batch.requests} x {batch.context} tokens on {options.gpu} ({gpu.source}); a model.")
    print(f"tiles of {tiling.tokens} tokens, {splits} splits of the context", end="")
    if tiling.terms:
        slow = layer.shape.head_dim // 2 - tiling.half
        print(f"; the kernel absorbs {slow} pairs in {tiling.terms} terms", end="")
    print("\n" + table(bounds(layer, batch, gpu, options.instructions, options.codec), gpu))


if __name__ == "__main__":
    main()
