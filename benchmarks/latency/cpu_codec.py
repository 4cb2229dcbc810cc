"""How long does attention of one layer take on a CPU over a codec's slots, beside vLLM's own over whole keys?

``make bench-cpu``. All arms of a shape take turns in one process, so that what else the machine does meets all alike;
a row has the medians, and the least times for a machine that is never quiet. The last line is JSON.
``--repeats N`` takes turns N times.
"""

import itertools
import json
import statistics
import time
from typing import Any

import torch

from benchmarks.common.output import command_line, say, write_result
from benchmarks.latency.cpu_arms import Run, Shape, Tiers, coded, dense, latents, rebuild_alone

THREE_OF_THREE, EIGHT_OF_FOUR = (3, 3, 64), (8, 4, 128)
SHAPES = [
    Shape(8, 2048, *THREE_OF_THREE), Shape(1, 8192, *THREE_OF_THREE), Shape(8, 2048, *EIGHT_OF_FOUR),
    Shape(32, 512, *THREE_OF_THREE), Shape(1, 2048, *THREE_OF_THREE, queries=2048),
    Shape(1, 2048, *EIGHT_OF_FOUR, queries=2048),
]  # fmt: skip
# groups and tiers of K and V in about a quarter of the bytes of 16 bits. Those of 3 of 3 are what palu-calibrate gave a
# layer of SmolLM2, by default and with --per-head; those of 8 of 4 are the same shares of more numbers.
CODECS: dict[tuple[int, int, int], dict[str, tuple[int, tuple[Tiers, Tiers]]]] = {
    THREE_OF_THREE: {
        "codec-4x": (1, (((48, 5), (48, 4), (80, 3), (16, 2)), ((32, 5), (80, 4), (64, 3), (16, 2)))),
        "codec-4x, per head": (3, (((8, 5), (16, 4), (40, 3)),) * 2),
    },
    EIGHT_OF_FOUR: {
        "codec-4x": (2, (((128, 5), (128, 4), (224, 3), (32, 2)), ((96, 5), (208, 4), (176, 3), (32, 2)))),
        "codec-4x, groups of 2": (4, (((64, 5), (64, 4), (112, 3), (16, 2)), ((48, 5), (112, 4), (80, 3), (16, 2)))),
        "codec-4x, per head": (8, (((16, 5), (32, 4), (80, 3)),) * 2),
    },
}
PAPER_GROUP = {THREE_OF_THREE: 3, EIGHT_OF_FOUR: 4}
DENSE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def timed(arms: dict[str, Run], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and least seconds of every arm, the arms in turns."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if turn:  # the first warms up
                taken[name].append(time.perf_counter() - start)
    return {name: (statistics.median(seconds), min(seconds)) for name, seconds in taken.items()}


def copied(count: int) -> Run:
    """A copy of as many bytes: half are read and half are written."""
    source = torch.empty(count // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def products(shape: Shape, group_width: int) -> int:
    """Multiplications of one attention whose vectors are ``group_width`` wide, of K and V."""
    pairs = shape.queries * (2 * shape.context - shape.queries + 1) // 2
    return 2 * shape.requests * pairs * shape.heads * group_width


def cells_of(shape: Shape, repeats: int) -> list[dict[str, Any]]:
    """One row per arm that is not dense."""
    heads = (shape.kv_heads, shape.queries_per_kv, shape.head_dim)
    built = {name: coded(shape, *codec) for name, codec in CODECS[heads].items()}
    built["paper, half the rank"] = latents(shape, PAPER_GROUP[heads])
    widths = {name: shape.kv_heads // groups * shape.head_dim for name, (groups, _) in CODECS[heads].items()}
    dense_arms = {name: dense(shape, dtype) for name, dtype in DENSE.items()}
    others = {"copy": copied(64 << 20), "rebuild": rebuild_alone(shape, PAPER_GROUP[heads])}
    times = timed(dense_arms | {name: run for name, (run, _) in built.items()} | others, repeats)
    seconds, least = ({name: pair[number] for name, pair in times.items()} for number in range(2))
    least_dense = min(least[name] for name in DENSE)
    fastest = min(DENSE, key=lambda name: seconds[name])
    rows = []
    for name, (_, size) in built.items():
        row = {
            "shape": shape.name, "phase": "decode" if shape.queries == 1 else "prefill", "arm": name,
            "dense_ms": seconds[fastest] * 1e3, "palu_ms": seconds[name] * 1e3,
            "ratio": seconds[name] / seconds[fastest], "fastest_dense": fastest,
            "least_dense_ms": least_dense * 1e3, "least_palu_ms": least[name] * 1e3,
            "ratio_of_least": least[name] / least_dense,
            "dense_all_ms": {arm: seconds[arm] * 1e3 for arm in DENSE},
            "fewer_bytes": shape.dense_bytes(torch.bfloat16) / size, "bytes_per_second": size / seconds[name],
            "copy_bytes_per_second": (64 << 20) / seconds["copy"],
        }  # fmt: skip
        if name in widths:
            row["products_per_second"] = products(shape, widths[name]) / seconds[name]
        else:
            row["ratio_of_rebuild_alone"] = seconds["rebuild"] / seconds[fastest]
        rows.append(row)
    return rows


def main() -> None:
    parser = command_line("benchmarks.latency.cpu_codec", __doc__ or "", "cpu_codec.json")
    parser.add_argument("--repeats", type=int, default=40, help="turns of every arm (default: 40, prompts 5)")
    parser.add_argument("--shapes", default="", help="only shapes whose name holds this")
    options = parser.parse_args()
    torch.manual_seed(0)
    chosen = [shape for shape in SHAPES if options.shapes in shape.name]
    found = []
    for shape in chosen:
        repeats = options.repeats if shape.queries == 1 else max(1, options.repeats // 8)
        found.append(cells_of(shape, repeats))
        for row in found[-1]:
            say(row)
    cells = list(itertools.chain.from_iterable(found))
    write_result(options.out, {"cells": cells, "repeats": options.repeats})
    print(json.dumps({"cells": [{key: row[key] for key in list(row)[:6]} for row in cells]}))


if __name__ == "__main__":
    main()
