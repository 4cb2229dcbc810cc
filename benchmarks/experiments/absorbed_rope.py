"""What does absorbed RoPE save beside rebuilding whole keys, and what does it cost in precision?

``docs/concepts/absorbed-rope.md`` derives it.
``python -m benchmarks.experiments.absorbed_rope`` writes ``benchmarks/results/absorbed_rope.json`` and prints a table.

head_dim 128, four KV heads in one group. Errors are of one tile of scores at position 4096, the largest over the
standard deviation of the scores, against float64: in float32 arithmetic, so that those of the Triton plan show the
approximation alone; "rounded" is rebuilding with only the rotated keys rounded to bfloat16 (simulated). Operations are
those of the plans over a full rebuild. CPU times are of decoding steps in float32 (2 requests of 1024 tokens), absorbed
and rebuilt taking turns; the Triton kernels are timed where there is a GPU, which nobody has tried.
"""

import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any, cast
from unittest.mock import patch

import torch

from benchmarks.common.output import command_line, table, write_result
from benchmarks.kernels.cpu_attention import latent_layers, rebuild_whole_keys
from benchmarks.kernels.layers import sizes
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.absorbed import Absorption, absorbed_scores, known_frequencies, relative_cost
from palu_vllm.kernels.cpu.absorbed import AbsorbedScores, plan
from palu_vllm.kernels.gpu.decode.plan import DecodePlan, columns, plan_absorbed_tiles
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.gpu.tiling import Device, decode_tiling
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch
from palu_vllm.kernels.reference import rebuild_keys

H200 = Device(multiprocessors=132, shared_memory=227 * 1024)
START, TILE, PAIRS = 4096, 128, 64
COLUMNS = (
    "theta",
    "queries",
    "rank",
    "rebuilt error",
    "rounded error",
    "CPU error",
    "CPU ops",
    "CPU time",
    "Triton error",
    "Triton ops",
)


def table_of(theta: float, positions: int) -> torch.Tensor:
    frequencies = theta ** (-torch.arange(0, 2 * PAIRS, 2, dtype=torch.float64) / (2 * PAIRS))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def random_rebuild(shape: LayerShape, cos_sin: torch.Tensor) -> KeyRebuild:
    k_up = torch.randn(shape.num_groups, shape.rank_k, shape.group_size * shape.head_dim) / shape.rank_k**0.5
    return KeyRebuild(k_up, None, cos_sin)


def up(rebuild: KeyRebuild) -> torch.Tensor:
    return cast(torch.Tensor, rebuild.k_up)


def exact_scores(query: torch.Tensor, latent_k: torch.Tensor, shape: LayerShape, rebuild: KeyRebuild) -> torch.Tensor:
    """Float64 ``[num_heads, TILE]``."""
    keys = torch.einsum("tgr,grd->tgd", latent_k.double(), up(rebuild).double())
    keys = torch.complex(*keys.reshape(TILE, shape.num_kv_heads, -1).chunk(2, -1))
    rotation = torch.complex(*rebuild.cos_sin[START : START + TILE].double().chunk(2, -1))
    q = torch.complex(*query.double().chunk(2, -1)).unflatten(0, (shape.num_kv_heads, -1))
    return shape.scale * torch.einsum("hji,ti,thi->hjt", q.conj(), rotation, keys).real.flatten(0, 1)


def errors(shape: LayerShape, cos_sin: torch.Tensor, absorptions: dict[str, Absorption | None]) -> dict[str, Any]:
    """Largest error over the standard deviation of scores: rebuilt, rounded to bfloat16, and of every absorption."""
    rebuild = random_rebuild(shape, cos_sin)
    query = torch.randn(shape.num_heads, shape.head_dim)
    latent_k = torch.randn(TILE, shape.num_groups, shape.rank_k)
    exact = exact_scores(query, latent_k, shape, rebuild)
    keys = rebuild_keys(latent_k, rebuild, shape, torch.arange(START, START + TILE))
    in_heads = query.unflatten(0, (shape.num_kv_heads, -1))
    scores = {
        name: shape.scale * torch.einsum("hjd,thd->hjt", in_heads, found).flatten(0, 1)
        for name, found in (("rebuilt", keys), ("rounded", keys.bfloat16().float()))
    }
    for name, absorption in absorptions.items():
        if absorption is not None:
            tiles = latent_k.split(absorption.tile_tokens)
            starts = range(START, START + TILE, absorption.tile_tokens)
            parts = [
                absorbed_scores(query, part, start, shape, rebuild, absorption)
                for part, start in zip(tiles, starts, strict=True)
            ]
            scores[name] = torch.cat(parts, dim=1)
    return {name: float((found - exact).abs().max() / exact.std()) for name, found in scores.items()}


def in_specification(found: DecodePlan) -> Absorption | None:
    """The plan of the Triton kernel as the specification takes it."""
    if found.basis is None or found.coefficients is None:
        return None
    coefficients = torch.complex(*found.coefficients)
    return Absorption(found.tiling.tokens, found.tiling.half, found.basis, coefficients)


def medians(first: list[Callable], second: list[Callable], clock: Callable[[], float], rounds: int) -> list[float]:
    """Median seconds of both, called in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for pair in zip(first, second, strict=True):
            for run, found in zip(pair, seconds, strict=True):
                start = clock()
                run()
                found.append(clock() - start)
    return [statistics.median(found) for found in seconds]


def cpu_times(shape: LayerShape, theta: float) -> dict[str, float]:
    """Milliseconds of one layer's decoding step."""
    case = (shape, 2, 1024, torch.float32, theta)
    absorbed, rebuilt = latent_layers(*case), latent_layers(*case)
    for run in absorbed:
        run()
    with patch.object(AbsorbedScores, "where_cheaper", rebuild_whole_keys):  # asked once, in the first step
        for run in rebuilt:
            run()
    found = medians(absorbed, rebuilt, time.thread_time, rounds=9)
    return {"absorbed": 1000 * found[0], "rebuilt": 1000 * found[1], "ratio": found[0] / found[1]}


def gpu_times(shape: LayerShape, theta: float, tokens: int = 32768) -> dict[str, float]:
    """Milliseconds of one layer's decoding step of 4 requests in bfloat16, by CUDA events."""
    blocks = 4 * tokens // 16
    cpu = random_rebuild(shape, table_of(theta, tokens))
    rebuild = KeyRebuild(up(cpu).bfloat16().cuda(), None, cpu.cos_sin.cuda())
    cache = torch.randn(blocks, shape.num_groups, 16, shape.slot_width, device="cuda", dtype=torch.bfloat16)
    table, lengths = torch.randperm(blocks).view(4, -1).int().cuda(), torch.full((4,), tokens).int().cuda()
    batch = PagedBatch(table, lengths, torch.arange(5).int().cuda(), 1, tokens)
    query = torch.randn(4, shape.num_heads, shape.head_dim, device="cuda", dtype=torch.bfloat16)
    out = query.new_empty(4, shape.num_heads, shape.rank_v)
    whole = DecodePlan(decode_tiling(shape, 2, H200))
    attention = TritonAttention(shape, rebuild)
    found: dict[str, list[float]] = {"absorbed": [], "rebuilt": []}
    plans = {"absorbed": cast(DecodePlan, attention.plan(1, torch.bfloat16, cache.device)), "rebuilt": whole}
    for _, (name, chosen) in product(range(30), plans.items()):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        attention.decode(query, cache, batch, out, chosen, None)
        end.record()
        torch.cuda.synchronize()
        found[name].append(start.elapsed_time(end))
    times = {name: statistics.median(values[5:]) for name, values in found.items()}
    return times | {"ratio": times["absorbed"] / times["rebuilt"]}


def row(theta: float, queries: int, rank: int) -> dict[str, Any]:
    shape = sizes(4 * queries, 4, 2 * PAIRS, 4, rank, rank)
    cos_sin = table_of(theta, START + TILE)
    on_cpu = plan(known_frequencies(cos_sin), queries, TILE)
    tiling = decode_tiling(shape, 2, H200)
    on_gpu = plan_absorbed_tiles(known_frequencies(cos_sin), shape, tiling, torch.bfloat16, H200)
    cost = relative_cost(PAIRS, on_cpu.fast, len(on_cpu.basis), on_cpu.tile_tokens, queries) if on_cpu else 1.0
    return {
        "theta": theta,
        "queries_per_kv": queries,
        "rank": rank,
        "error": errors(shape, cos_sin, {"cpu": on_cpu, "triton": in_specification(on_gpu)}),
        "cpu_plan": on_cpu and {"tile": on_cpu.tile_tokens, "fast": on_cpu.fast, "terms": len(on_cpu.basis)},
        "triton_plan": on_gpu.basis is not None and {"fast": on_gpu.tiling.half, "terms": on_gpu.tiling.terms},
        "cpu_operations": cost,
        "triton_operations": columns(shape, on_gpu.tiling) / columns(shape, tiling),
        "cpu_milliseconds": cpu_times(shape, theta),
        "gpu_milliseconds": gpu_times(shape, theta) if torch.cuda.is_available() else None,
    }


def line(found: dict[str, Any]) -> list[str]:
    error, cpu = found["error"], found["cpu_milliseconds"]
    shown = [f"{error[name]:.0e}" if name in error else "-" for name in ("rebuilt", "rounded", "cpu", "triton")]
    timed = f"{cpu['ratio']:.2f}" if found["cpu_plan"] else "-"
    head = [f"{found['theta']:.0e}", str(found["queries_per_kv"]), str(found["rank"]), *shown[:3]]
    return [*head, f"{found['cpu_operations']:.2f}", timed, shown[3], f"{found['triton_operations']:.2f}"]


def main() -> None:
    options = command_line("benchmarks.experiments.absorbed_rope", __doc__, "absorbed_rope.json").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = [row(*case) for case in product((1e4, 5e5, 1e6), (1, 4, 8), (128, 256))]
    write_result(options.out, {"rows": rows})
    print(table(COLUMNS, [line(each) for each in rows]))


if __name__ == "__main__":
    main()
