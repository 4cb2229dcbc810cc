"""The harness of the two latency benchmarks: options, the sweep over contexts and arms, rows, table and files.

Triton chooses between compiler and interpreter when a kernel is defined, so that kernels are imported only after the
options are known.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention_case import Arm, Case, UnavailableError
from benchmarks.gpus import Gpu, gpu_of_device
from benchmarks.latency_plot import plot
from benchmarks.layers import MODELS, Model
from benchmarks.provenance import ROOT, provenance
from benchmarks.roofline import add_layer_options, layer_of, positive
from benchmarks.roofline_model import Batch, Work
from benchmarks.timing import Spread, timer_of

Row = dict[str, Any]
CONTEXTS = [4096 << doubling for doubling in range(7)]  # 4K to 256K, the paper's
CHECKED_CONTEXT = 8192  # up to which results are compared with float32 before they are timed
SMOKE = "smoke, not a measurement"
SMOKE_SHAPES = MODELS | {"tiny": Model(num_heads=4, num_kv_heads=4, head_dim=32, hidden_size=64, theta=1e4)}
SMOKE_DEFAULTS = {"shape": "tiny", "ranks": (16, 24), "contexts": [40, 72], "repeats": 3, "warmup": 1}
ARMS = ("palu", "palu_packed", "flash_attention_3", "flash_attention_3_fp8", "vllm_triton", "torch_sdpa")


@dataclass(frozen=True)
class Experiment:
    """``step`` makes from an arm what is timed, and what that has to do beside attention."""

    name: str
    title: str
    step: Callable[[Arm, Case], tuple[Callable[[], torch.Tensor], Work]]


def parser_of(experiment: Experiment, smoke: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{experiment.name}", description=experiment.title)
    add_layer_options(parser, "llama-2-7b", SMOKE_SHAPES if smoke else MODELS)
    parser.add_argument("--contexts", type=positive, nargs="+", default=CONTEXTS, help="default: 4096 to 262144")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--bits", type=int, choices=(8, 4, 3, 2), default=4, help="of the packed arm (default 4)")
    parser.add_argument("--block-size", type=positive, default=16, help="tokens per block (default 16)")
    parser.add_argument("--repeats", type=positive, default=30)
    parser.add_argument("--warmup", type=positive, default=5)
    parser.add_argument(
        "--out", type=Path, help="JSON file; default: benchmarks/results/NAME_DEVICE.json, none in a smoke"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    if smoke:
        parser.set_defaults(**SMOKE_DEFAULTS)
    return parser


def builders(bits: int) -> dict[str, Callable[[Case], Arm]]:
    from benchmarks.dense_arms import FlashAttention3, FlashAttention3Fp8, TorchSdpa, VllmTriton
    from benchmarks.latent_arms import Palu

    arms = (Palu, lambda case: Palu(case, bits), FlashAttention3, FlashAttention3Fp8, VllmTriton, TorchSdpa)
    return dict(zip(ARMS, arms, strict=True))


def relative_error(arm: Arm, case: Case) -> float:
    """``|out - expected| / |expected|`` for a random query."""
    shape = case.layer.shape
    query = case.random(case.batch.requests, shape.num_heads, shape.head_dim)
    expected = arm.expected(query)
    return float((arm.attend(query).float() - expected).norm() / expected.norm())


def checked_error(arm: Arm, case: Case) -> float | None:
    """None past ``CHECKED_CONTEXT``. Raises UnavailableError for a wrong result, which is not worth timing."""
    if case.batch.context > CHECKED_CONTEXT:
        return None
    error = relative_error(arm, case)
    if not error <= arm.tolerance:
        raise UnavailableError(f"wrong result: relative error {error:.3g}, allowed {arm.tolerance}")
    return error


def measured(arm: Arm, experiment: Experiment, case: Case, options: argparse.Namespace) -> Row:
    """Times in seconds, and rates of the least work that the arm must do."""
    error = checked_error(arm, case)
    run, beside = experiment.step(arm, case)
    spread = Spread.of(timer_of(case.device).seconds(run, options.warmup, options.repeats))
    works = [work + beside for work in arm.least_work()]
    gpu = gpu_of_device(torch.cuda.get_device_name(case.device)) if case.device.type == "cuda" else None
    return {
        "seconds": asdict(spread),
        "bytes_per_second": works[0].memory_bytes / spread.median,
        "flops_per_second": works[0].flops / spread.median,
        "share_of_bound": share_of_bound(works, gpu, spread.median),
        "relative_error": error,
    }


def share_of_bound(works: list[Work], gpu: Gpu | None, seconds: float) -> float | None:
    """The bound of the best plan over the time taken; None for a GPU whose rates are not known."""
    return gpu and min(work.bound(gpu)[1] for work in works) / seconds


def row_of(name: str, experiment: Experiment, case: Case, options: argparse.Namespace) -> Row:
    """One measurement, or under ``missing`` why there is none."""
    from triton.errors import TritonError

    row = {"arm": name, "context": case.batch.context}
    try:
        return row | measured(builders(options.bits)[name](case), experiment, case, options)
    except (UnavailableError, TritonError, RuntimeError, TypeError, AssertionError) as error:
        return row | {"missing": f"{type(error).__name__}: {error}".strip().splitlines()[0]}


def sweep(experiment: Experiment, options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Row]:
    device = torch.device("cpu" if options.smoke else "cuda")
    dtype = torch.float16 if options.smoke else torch.bfloat16  # the interpreter has no bfloat16
    models, rows = SMOKE_SHAPES if options.smoke else MODELS, []
    layer = layer_of(options, parser, models)
    for context in options.contexts:
        batch = Batch(options.batch, context)
        for name in options.arms:
            torch.manual_seed(0)
            case = Case(layer, models[options.shape].hidden_size, batch, dtype, device, options.block_size)
            with torch.inference_mode():
                rows.append(row_of(name, experiment, case, options))
            gc.collect()
            torch.cuda.empty_cache()
    return rows


def fastest_dense(rows: list[Row], context: int) -> float | None:
    """Seconds of the fastest dense arm in 16 bits at that context, what speed-ups are over."""
    dense = ("flash_attention_3", "vllm_triton", "torch_sdpa")
    found = [
        r["seconds"]["median"] for r in rows if (r["context"], "missing" in r) == (context, False) and r["arm"] in dense
    ]
    return min(found, default=None)


def table(rows: list[Row]) -> str:
    head = f"{'context':>8} {'arm':22} {'median us':>10} {'quartiles us':>19} {'GB/s':>8} {'TFLOP/s':>8}"
    lines = [f"{head} {'of bound':>8} {'over dense':>10}"]
    for row in rows:
        start = f"{row['context']:8} {row['arm']:22}"
        if "missing" in row:
            lines.append(f"{start} missing: {row['missing']}")
            continue
        seconds, dense = row["seconds"], fastest_dense(rows, row["context"])
        quartiles = f"{1e6 * seconds['low']:.1f} - {1e6 * seconds['high']:.1f}"
        rates = f"{row['bytes_per_second'] / 1e9:8.1f} {row['flops_per_second'] / 1e12:8.2f}"
        share = "" if row["share_of_bound"] is None else f"{row['share_of_bound']:.0%}"
        speed_up = "" if dense is None else f"{dense / seconds['median']:.2f}x"
        lines.append(f"{start} {1e6 * seconds['median']:10.1f} {quartiles:>19} {rates} {share:>8} {speed_up:>10}")
    return "\n".join(lines)


def result_of(experiment: Experiment, options: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    kept = {name: value for name, value in vars(options).items() if name not in ("out", "smoke")}
    device = torch.device("cpu" if options.smoke else "cuda")
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "kind": SMOKE if options.smoke else "measurement",
        "timing": timer_of(device).method,
        "options": kept,
        "rows": rows,
        "provenance": provenance(),
    }


def refusal(smoke: bool) -> str | None:
    """Why nothing can be timed here; None where it can."""
    if smoke:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is here, and times of a CPU would say nothing; --smoke tries out the harness"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 would time an interpreter; unset it"
    return None


def write(result: dict[str, Any], out: Path) -> None:
    """The JSON file and, beside it, its plot."""
    out.write_text(json.dumps(result, indent=1, default=str) + "\n")
    plot(result, out.with_suffix(".png"))
    print(f"written: {out}, {out.with_suffix('.png')}")


def run(experiment: Experiment, arguments: list[str] | None = None) -> None:
    """The command. Exits with 2 and one sentence where there is no GPU."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = parser_of(experiment, "--smoke" in arguments)
    options = parser.parse_args(arguments)
    reason = refusal(options.smoke)
    if reason:
        print(f"{parser.prog}: {reason}", file=sys.stderr)
        sys.exit(2)
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    result = result_of(experiment, options, sweep(experiment, options, parser))
    print(f"{experiment.title} ({result['kind']}; {result['timing']})")
    print(table(result["rows"]))
    out = options.out
    if out is None and not options.smoke:
        device = torch.cuda.get_device_name().lower().replace(" ", "_")
        out = ROOT / "benchmarks" / "results" / f"{experiment.name}_{device}.json"
    if out:
        write(result, out)
