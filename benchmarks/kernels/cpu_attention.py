"""Where does the time of decoding go on a CPU, and what does the key rebuild cost beside dense attention?

``python -m benchmarks.kernels.cpu_attention [--json] [--batch N] [--context N] [--rank N] [--threads N] [--dtype
NAME]``

One layer (8 query heads, 4 KV heads of 64, group size 4 unless told otherwise) decodes one token per request: as it is
served (``absorbed``: slow rotary pairs are scored without rebuilding them, docs/concepts/absorbed-rope.md), with whole
keys rebuilt (``rebuilt``), and as torch's dense attention over keys and values of the same context (``dense``). Layers
take turns, as in a model, so that nothing is found in the processor's cache. The rows are the repetition with the
smallest total. With one thread the clock is the thread's own processor time, which other programs on the machine
disturb least; else it is wall time.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.common.provenance import provenance
from benchmarks.kernels.layers import sizes
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.cpu.absorbed import AbsorbedScores
from palu_vllm.kernels.cpu.attention import Softmax, TorchAttention
from palu_vllm.kernels.cpu.tiles import KeySource
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch

BLOCK_SIZE = 128
LAYERS = 6
STAGES = (
    ("gather", KeySource, "latents"),
    ("rebuild", KeySource, "keys"),
    ("rebuild", KeySource, "rotate"),
    ("rebuild", AbsorbedScores, "_rebuilt"),
    ("absorb", AbsorbedScores, "_absorbed"),
    ("softmax_and_values", Softmax, "add"),
)


@contextmanager
def timed_stages(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """While open, adds up the seconds spent in each of ``STAGES``. Rebuilding includes the rotation."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(stage: str, method: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            result = method(*args, **kwargs)
            seconds[stage] += clock() - start
            return result

        return run

    with ExitStack() as stack:
        for stage, owner, name in STAGES:
            stack.enter_context(patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield seconds


def fastest(runs: list[Callable[[], Any]], repetitions: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds per stage and in total of the fastest of all calls; ``runs`` take turns."""
    best = {"total": float("inf")}
    with timed_stages(clock) as seconds:
        for run in runs * repetitions:
            seconds.clear()
            start = clock()
            run()
            total = clock() - start
            if total < best["total"]:
                best = {**seconds, "total": total}
    return {stage: round(1000 * value, 3) for stage, value in best.items()}


def latent_layers(
    shape: LayerShape, batch: int, context: int, dtype: torch.dtype, theta: float
) -> list[Callable[[], Any]]:
    """One decoding step of each of ``LAYERS`` layers, over caches whose blocks lie in random order."""
    blocks = -(-context // BLOCK_SIZE)
    frequencies = theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim)
    angles = torch.arange(context, dtype=torch.float64)[:, None] * frequencies
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).float()
    paged = PagedBatch(
        block_table=torch.randperm(batch * blocks).view(batch, blocks).int(),
        seq_lens=torch.full((batch,), context, dtype=torch.int32),
        query_start_loc=torch.arange(batch + 1, dtype=torch.int32),
        max_query_len=1,
        max_seq_len=context,
    )
    query, out = torch.randn(batch, shape.num_heads, shape.head_dim), torch.empty(batch, shape.num_heads, shape.rank_v)

    def layer() -> Callable[[], Any]:
        k_up = torch.randn(shape.num_groups, shape.rank_k, shape.group_size * shape.head_dim) / shape.rank_k**0.5
        attention = TorchAttention(shape, KeyRebuild(k_up, None, cos_sin))
        cache = torch.randn(batch * blocks, shape.num_groups, BLOCK_SIZE, shape.rank_k + shape.rank_v).to(dtype)
        return lambda: attention.attend(query, cache, paged, out)

    return [layer() for _ in range(LAYERS)]


def dense_layers(shape: LayerShape, batch: int, context: int, dtype: torch.dtype) -> list[Callable[[], Any]]:
    """The same step by torch's dense attention over contiguous keys and values."""
    query = torch.randn(batch, shape.num_heads, 1, shape.head_dim, dtype=dtype)

    def layer() -> Callable[[], Any]:
        keys, values = torch.randn(2, batch, shape.num_kv_heads, context, shape.head_dim, dtype=dtype)
        return lambda: scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    return [layer() for _ in range(LAYERS)]


def rebuild_whole_keys(*_: Any) -> None:
    """Stands in for ``AbsorbedScores.where_cheaper``: nothing is absorbed."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One result row."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    shape = sizes(arguments.heads, 4, 64, arguments.group_size, arguments.rank, arguments.rank)
    case = (shape, arguments.batch, arguments.context, getattr(torch, arguments.dtype))
    with torch.inference_mode():
        absorbed = fastest(latent_layers(*case, arguments.theta), arguments.repetitions, clock)
        with patch.object(AbsorbedScores, "where_cheaper", rebuild_whole_keys):
            rebuilt = fastest(latent_layers(*case, arguments.theta), arguments.repetitions, clock)
        dense = fastest(dense_layers(*case), arguments.repetitions, clock)
    return {
        "milliseconds": {"absorbed": absorbed, "rebuilt": rebuilt, "dense": dense},
        "absorbed_over_rebuilt": round(absorbed["total"] / rebuilt["total"], 3),
        "absorbed_over_dense": round(absorbed["total"] / dense["total"], 2),
        "rebuild_share": round((absorbed["rebuild"] + absorbed.get("absorb", 0)) / absorbed["total"], 3),
        "clock": clock.__name__,
        **{name: value for name, value in vars(arguments).items() if name != "json"},
        "provenance": provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=128, help="of keys and of values, per group")
    parser.add_argument("--heads", type=int, default=8, help="query heads; there are 4 KV heads")
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--theta", type=float, default=5e5, help="base of the rotary frequencies")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=10)
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
