"""The harness of the two latency benchmarks: options, the sweep over contexts and arms, and what is written.

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

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.kernels.gpus import Gpu, gpu_of_device
from benchmarks.kernels.layers import MODELS, Layer, Model
from benchmarks.kernels.roofline import add_layer_options, layer_of, positive
from benchmarks.kernels.roofline_model import Batch, Work
from benchmarks.latency.attention_case import Arm, Case, UnavailableError
from benchmarks.latency.plot import plot
from benchmarks.latency.table import Row, table
from benchmarks.latency.timing import CudaTimer, Spread, WallTimer

CONTEXTS = [4096 << doubling for doubling in range(7)]  # 4K to 256K, the paper's
MOST_TOKENS = 1 << 23
CHECKED_CONTEXT = 8192  # up to which results are compared with float32 before they are timed
ARMS = ("palu", "palu_packed", "codec", "flash_attention_3", "flash_attention_3_fp8", "vllm_triton", "torch_sdpa")
SMOKE = "smoke, not a measurement"
SMOKE_SHAPES = MODELS | {"tiny": Model(num_heads=4, num_kv_heads=4, head_dim=32, hidden_size=64, theta=1e4)}
SMOKE_DEFAULTS = {"shape": "tiny", "ranks": (16, 24), "contexts": [40, 72], "repeats": 3, "warmup": 1}


@dataclass(frozen=True)
class Experiment:
    """``step`` makes from an arm what is timed, and says what that has to do beside attention."""

    name: str
    title: str
    step: Callable[[Arm, Case], tuple[Callable[[], torch.Tensor], Work]]


@dataclass(frozen=True)
class Sweep:
    """One run: what is timed, on what, and how."""

    experiment: Experiment
    options: argparse.Namespace
    layer: Layer
    hidden_size: int
    device: torch.device
    timer: CudaTimer | WallTimer

    def case(self, batch: Batch) -> Case:
        dtype = torch.float16 if self.options.smoke else torch.bfloat16  # the interpreter has no bfloat16
        return Case(self.layer, self.hidden_size, batch, dtype, self.device, self.options.block_size)

    def batches(self) -> list[Batch]:
        """Contexts in order, at each of them every number of requests, without those of more than ``--most-tokens``."""
        found = [Batch(requests, context) for context in self.options.contexts for requests in self.options.batch]
        return [batch for batch in found if batch.tokens <= self.options.most_tokens]

    def rows(self) -> list[Row]:
        """Batches in order, for each of them all arms, from the same seed; each row is kept once it is there."""
        rows = []
        for batch in self.batches():
            for name in self.options.arms:
                torch.manual_seed(0)
                with torch.inference_mode():
                    rows.append(self.row(name, builders(self.options.bits)[name], self.case(batch)))
                self.keep(rows[-1])
                gc.collect()
                torch.cuda.empty_cache()
        return rows

    def keep(self, row: Row) -> None:
        """Appends one line of JSON to the file of ``--rows``, with what is measured."""
        options = self.options
        if options.rows:
            measured = {"experiment": self.experiment.name, "shape": options.shape, "ranks": list(options.ranks)}
            with options.rows.open("a") as file:
                file.write(json.dumps({**measured, "bits": options.bits, "kind": kind_of(options), **row}) + "\n")

    def row(self, name: str, build: Callable[[Case], Arm], case: Case) -> Row:
        """One measurement, or under ``missing`` why there is none."""
        from triton.errors import TritonError

        row = {"arm": name, "batch": case.batch.requests, "context": case.batch.context}
        try:
            return row | self.measured(build(case), case)
        except (UnavailableError, TritonError, RuntimeError, TypeError, AssertionError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return row | {"missing": reason.replace(f"{ROOT}/", "")}

    def measured(self, arm: Arm, case: Case) -> Row:
        """Times in seconds, and rates of the least work that the arm must do."""
        error = checked_error(arm, case)
        run, beside = self.experiment.step(arm, case)
        spread = Spread.of(self.timer.seconds(run, self.options.warmup, self.options.repeats))
        works = [work + beside for work in arm.least_work()]
        gpu = gpu_of_device(torch.cuda.get_device_name(case.device)) if case.device.type == "cuda" else None
        return {
            "seconds": asdict(spread),
            "bytes_per_second": works[0].memory_bytes / spread.median,
            "flops_per_second": works[0].flops / spread.median,
            "share_of_bound": share_of_bound(works, gpu, spread.median),
            "relative_error": error,
        }

    def result(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        kept = {name: value for name, value in vars(self.options).items() if name not in ("out", "rows", "smoke")}
        return {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "kind": kind_of(self.options),
            "timing": self.timer.method,
            "options": kept,
            "rows": self.rows(),
            "provenance": provenance(),
        }


def kind_of(options: argparse.Namespace) -> str:
    return SMOKE if options.smoke else "measurement"


def builders(bits: int) -> dict[str, Callable[[Case], Arm]]:
    from benchmarks.latency.codec_arm import Codec
    from benchmarks.latency.dense_arms import FlashAttention3, FlashAttention3Fp8, TorchSdpa, VllmTriton
    from benchmarks.latency.latent_arms import Palu

    arms = (Palu, lambda case: Palu(case, bits), Codec, FlashAttention3, FlashAttention3Fp8, VllmTriton, TorchSdpa)
    return dict(zip(ARMS, arms, strict=True))


def checked_error(arm: Arm, case: Case) -> float | None:
    """``|out - expected| / |expected|`` for a random query, None past ``CHECKED_CONTEXT``.

    Raises UnavailableError for a wrong result, which is not worth timing.
    """
    if case.batch.context > CHECKED_CONTEXT:
        return None
    query = case.random(case.batch.requests, case.layer.shape.num_heads, case.layer.shape.head_dim)
    expected = arm.expected(query)
    error = float((arm.attend(query).float() - expected).norm() / expected.norm())
    if not error <= arm.tolerance:
        raise UnavailableError(f"wrong result: relative error {error:.3g}, allowed {arm.tolerance}")
    return error


def share_of_bound(works: list[Work], gpu: Gpu | None, seconds: float) -> float | None:
    """The bound of the best plan over the time taken; None for a GPU whose rates are not known."""
    return None if gpu is None else min(work.bound(gpu)[1] for work in works) / seconds


def parser_of(experiment: Experiment, smoke: bool) -> argparse.ArgumentParser:
    program = f"python -m benchmarks.latency.{experiment.name}"
    parser = argparse.ArgumentParser(prog=program, description=experiment.title)
    add_layer_options(parser, "llama-2-7b", SMOKE_SHAPES if smoke else MODELS)
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], help="requests, one or several (default 1)")
    parser.add_argument(
        "--most-tokens", type=positive, default=MOST_TOKENS, help="of a batch; larger ones are left out"
    )
    parser.add_argument("--contexts", type=positive, nargs="+", default=CONTEXTS, help="default: 4096 to 262144")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--bits", type=int, choices=(8, 4, 3, 2), default=4, help="of the packed arm (default 4)")
    parser.add_argument("--block-size", type=positive, default=16, help="tokens per block (default 16)")
    parser.add_argument("--repeats", type=positive, default=30)
    parser.add_argument("--warmup", type=positive, default=5)
    parser.add_argument("--out", type=Path, help="JSON file (default: in benchmarks/results/; in a smoke none)")
    parser.add_argument("--rows", type=Path, help="a file that gets one line of JSON per row as it is measured")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    if smoke:
        parser.set_defaults(**SMOKE_DEFAULTS)
    return parser


def refusal() -> str | None:
    """Why nothing can be timed here; None where it can."""
    if not torch.cuda.is_available():
        return "no CUDA device is here, and times on a CPU would say nothing; --smoke tries out the harness"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 would time an interpreter; unset it"
    return None


def default_out(experiment: Experiment) -> Path:
    device = torch.cuda.get_device_name().lower().replace(" ", "_")
    return ROOT / "benchmarks" / "results" / f"{experiment.name}_{device}.json"


def run(experiment: Experiment, arguments: list[str] | None = None) -> None:
    """The command. Exits with 2 and one sentence where there is no GPU."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = parser_of(experiment, "--smoke" in arguments)
    options = parser.parse_args(arguments)
    reason = None if options.smoke else refusal()
    if reason:
        print(f"{parser.prog}: {reason}", file=sys.stderr)
        sys.exit(2)
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    device = torch.device("cpu" if options.smoke else "cuda")
    timer = WallTimer() if options.smoke else CudaTimer(device)
    layer, hidden_size = layer_of(options, parser, SMOKE_SHAPES), SMOKE_SHAPES[options.shape].hidden_size
    result = Sweep(experiment, options, layer, hidden_size, device, timer).result()
    print(f"{experiment.title} ({result['kind']}; {result['timing']})")
    print(table(result["rows"]))
    out = options.out or (None if options.smoke or options.rows else default_out(experiment))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
        plot(result, out.with_suffix(".png"))
        print(f"written: {out} and {out.with_suffix('.png').name}")
