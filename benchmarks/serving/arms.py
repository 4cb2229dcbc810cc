"""The arms of ``benchmarks.serving``: which checkpoint, served with which flags."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.common import commands
from benchmarks.common.shipped import CALIBRATION_SAMPLES
from palu_vllm.format.checkpoint import read_config
from palu_vllm.format.codec.file import JSON

PALU = ("--attention-backend", "palu")
BUDGET, CODEC_BUDGET = (re.compile(rf"{kind}-(\d+(?:\.\d+)?)x") for kind in ("palu", "codec"))
NAMED_ERROR = re.compile(r"\b\w+(?:Error|Exception): .+")
HELP = (
    "dense; a cache dtype of vLLM (fp8, fp8_e5m2, ...), on the dense model; codec-4x (palu-calibrate "
    "--target-compression 4), on the dense model; palu (half the rank in 16 bits); palu-6x (palu-compress "
    "--target-compression 6); NAME=DIR (a compressed checkpoint or a codec that exists)"
)


@dataclass(frozen=True)
class Arm:
    """One way of serving the model."""

    name: str
    model: Path
    flags: tuple[str, ...] = ()
    codec: Path | None = None

    @property
    def said_flags(self) -> list[str]:
        """Without the place where the codec lies on this machine."""
        return [flag.replace(str(self.codec), self.name) if self.codec else flag for flag in self.flags]

    @property
    def cache_dtype(self) -> str:
        """As vLLM's ``--kv-cache-dtype``."""
        return self.flags[1] if self.flags[:1] == ("--kv-cache-dtype",) else "auto"


def cache_dtypes() -> tuple[str, ...]:
    from vllm.config.cache import CacheDType

    return get_args(CacheDType)


def coded(name: str, model: Path, codec: Path) -> Arm:
    """The model as it is, with a codec."""
    settings = json.dumps({"palu": {"codec": str(codec)}})
    return Arm(name, model, (*PALU, "--additional-config", settings), codec)


def compress_flags(name: str) -> tuple[str, ...] | None:
    """The options of ``palu-compress`` that make an arm; None for one that needs no compression."""
    if name == "palu":
        return ()
    budget = BUDGET.fullmatch(name)
    return ("--target-compression", budget[1]) if budget else None


def parse_arm(name: str, model: Path, scratch: Path) -> Arm:
    """Raises ValueError with one sentence for a name that means nothing, or a directory that is nothing of ours."""
    title, _, directory = name.partition("=")
    if directory:
        if (Path(directory) / JSON).exists():
            return coded(title, model, Path(directory))
        read_config(Path(directory))
        return Arm(title, Path(directory), PALU)
    if name == "dense":
        return Arm(name, model)
    if CODEC_BUDGET.fullmatch(name):
        return coded(name, model, scratch / name)
    if compress_flags(name) is not None:
        return Arm(name, scratch / name, PALU)
    if name in cache_dtypes():
        return Arm(name, model, ("--kv-cache-dtype", name))
    raise ValueError(f"--arms has {name!r}; expected {HELP}.")


def parse_arms(names: Sequence[str], model: Path, scratch: Path) -> list[Arm]:
    """The arms in their order. Raises ValueError for a bad one, or where two share a name."""
    arms = [parse_arm(name, model, scratch) for name in names]
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"--arms names an arm twice: {', '.join(arm.name for arm in arms)}.")
    return arms


def why_missing(error: RuntimeError) -> str:
    """The first exception that the end of a server's log names; the others follow from it. Else the last line.

    Warnings name exceptions that others may meet.
    """
    lines = str(error).strip().splitlines()
    said = [line for line in lines if "WARNING" not in line]
    return next((found[0] for line in said if (found := NAMED_ERROR.search(line))), lines[-1])


def make(arm: Arm, model: Path, calibration: Path) -> None:
    """Writes the codec or the checkpoint of an arm that is made here; nothing for others."""
    budget = CODEC_BUDGET.fullmatch(arm.name)
    if budget and arm.codec and not arm.codec.exists():
        commands.calibrate(arm.codec, "--target-compression", budget[1], model=model, calibration=calibration)
    flags = compress_flags(arm.name)
    if flags is None or arm.model.exists():
        return
    samples = ["--calib-samples", CALIBRATION_SAMPLES]
    commands.compress(arm.model, *samples, *flags, model=model, calibration=calibration)
