"""How long does the host take to launch ``attend`` and ``store`` of one layer, before the GPU has done anything?

``python -m benchmarks.gpu.host_time --arm palu_16 --rows FILE`` times calls that nobody waits for, in rounds. Without a
GPU launches are stubbed (``stub_driver``): Python, checks and Triton's binder are timed, its launcher in C is not; of a
codec products are stubbed too (``stubbed_codec``). Without CUDA graphs a step of a model takes at least this, times its
layers.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common.provenance import provenance
from benchmarks.gpu.setting import CODED, ON_GPU, Row, Setting, append, arm_of, parser_of

CALLS, ROUNDS = 50, 20  # calls of a round: fewer than a stream queues
TARGET = 30e-6  # seconds per layer, of attend and store together


def seconds_per_call(
    run: Callable[[], object],
    wait: Callable[[], object],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Of every round, after one that warms up; ``wait`` empties the queue outside of the times."""
    taken = []
    for turn in range(rounds + 1):
        wait()
        start = clock()
        for _ in range(CALLS):
            run()
        if turn:
            taken.append((clock() - start) / CALLS)
    return taken


def nothing() -> None:
    """There is no queue where launches are stubbed."""


def calls_of(name: str, setting: Setting) -> tuple[dict[str, Callable[[], object]], Any]:
    """``attend`` and ``store`` for one request, by name, and the attention that runs."""
    torch.manual_seed(0)
    case = setting.case(1, setting.context)
    arm = arm_of(name, case)
    query = case.random(1, case.layer.shape.num_heads, case.layer.shape.head_dim)
    widths = arm.projections[0][1:] or tuple(width for (width,) in arm.projections[1:])
    token = [case.random(1, width) for width in widths]
    return {"attend": lambda: arm.attend(query), "store": lambda: arm.store(*token)}, arm.attention  # type: ignore[attr-defined]


def stubbed_calls() -> tuple[dict[str, Callable[[], object]], Any]:
    """Those of a codec, of which torch computes nothing."""
    from benchmarks.gpu.stubbed_codec import StubbedCodec, pretend_products

    pretend_products()
    step = StubbedCodec()
    return {"attend": step.attend, "store": step.store}, step.attention


def row_of(name: str, setting: Setting, rounds: int = ROUNDS) -> Row:
    """Medians and least times of both calls, for one request."""
    stubbed = name == "codec" and setting.rehearsal
    runs, attention = stubbed_calls() if stubbed else calls_of(name, setting)
    wait = nothing if setting.rehearsal else torch.cuda.synchronize
    clock = time.process_time if setting.rehearsal else time.perf_counter  # where nothing runs but the host: CPU time
    found: Row = {"experiment": "host_time", "arm": name, "implementation": type(attention).__name__}
    total = 0.0
    for call, run in runs.items():
        taken = seconds_per_call(run, wait, rounds, clock)
        found[f"{call}_microseconds"] = round(1e6 * statistics.median(taken), 2)
        found[f"{call}_least_microseconds"] = round(1e6 * min(taken), 2)
        total += min(taken)
    return found | {"within_target": total <= TARGET, "target_microseconds": 1e6 * TARGET, "context": setting.context}


def stubbed() -> Setting:
    """The layer of an 8B model on a stub of an H200."""
    from benchmarks.gpu.stub_driver import pretend

    pretend()
    return Setting(torch.device("cpu"), torch.float16, ON_GPU.shape, ON_GPU.ranks, 256, 9)


def main() -> None:
    parser = parser_of("host_time", __doc__ or "")
    parser.add_argument("--arm", choices=CODED, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    there = torch.cuda.is_available()
    if not there and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 would time an interpreter; unset it")
    with torch.inference_mode():
        row = row_of(options.arm, ON_GPU if there else stubbed(), options.rounds)
    kind = "measurement" if there else "launches and products stubbed" if options.arm == "codec" else "launches stubbed"
    append(options.rows, {**row, "kind": kind, "rehearsal": options.rehearse, "provenance": provenance()})
    print(row)


if __name__ == "__main__":
    main()
