"""What the steps of a session work on: the layer of an 8B model on a GPU, or in a rehearsal a tiny one on a CPU."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.roofline_model import Batch
from benchmarks.latency.attention_case import Arm, Case
from benchmarks.latency.harness import SMOKE_SHAPES

Row = dict[str, Any]
CODED = ("palu_16", "palu_4", "codec")  # the arms of this project


@dataclass(frozen=True)
class Setting:
    """Sizes of everything that a step does."""

    device: torch.device
    dtype: torch.dtype
    shape: str
    ranks: tuple[int, int]
    context: int
    queries: int  # of the prefill

    @property
    def rehearsal(self) -> bool:
        return self.device.type == "cpu"

    def case(self, requests: int, context: int | None = None) -> Case:
        model = SMOKE_SHAPES[self.shape]
        batch = Batch(requests, context or self.context)
        return Case(model.layer(*self.ranks), model.hidden_size, batch, self.dtype, self.device, block_size=16)


ON_GPU = Setting(torch.device("cuda"), torch.bfloat16, "llama-3.1-8b", (128, 384), 4096, 300)
REHEARSED = Setting(torch.device("cpu"), torch.float16, "tiny", (16, 24), 20, 3)  # the interpreter has no bfloat16


def arm_of(name: str, case: Case) -> Arm:
    """One of ``CODED``. Kernels are imported here, once it is known whether they are interpreted."""
    from benchmarks.latency.codec_arm import Codec
    from benchmarks.latency.latent_arms import Palu

    arms: dict[str, Callable[[Case], Arm]] = {"palu_16": Palu, "palu_4": lambda of: Palu(of, 4), "codec": Codec}
    return arms[name](case)


def parser_of(module: str, about: str) -> argparse.ArgumentParser:
    """With ``--rows FILE`` and ``--rehearse``, which every step has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{module}", description=about.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="a file that gets one line of JSON per row")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU; measures nothing")
    return parser


def setting_of(options: argparse.Namespace) -> Setting:
    """Raises SystemExit with one sentence where there is no GPU and nobody asked for a rehearsal."""
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here; --rehearse tries the step on a CPU")
    return REHEARSED if options.rehearse else ON_GPU


def append(path: Path, *rows: Row) -> None:
    """One line of JSON per row, on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> Sequence[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
