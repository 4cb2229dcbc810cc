"""What a soak serves: the shipped model compressed, or as it is with a codec and drafts."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.commands import calibrate, compress
from benchmarks.common.shipped import CALIBRATION_SAMPLES, MODEL

DRAFTS = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3, "num_speculative_tokens": 3}


@dataclass(frozen=True)
class Served:
    """A model, more flags of ``vllm serve``, and what a report says of both."""

    model: Path
    flags: tuple[str, ...]
    said: str


def with_latents(model: Path | None, scratch: Path) -> Served:
    """A checkpoint that exists, or else the shipped model, compressed into ``scratch``."""
    if model:
        return Served(model, (), model.name)
    out = scratch / "compressed"
    compress(out, "--target-compression", 6, "--calib-samples", CALIBRATION_SAMPLES, quiet=False)
    return Served(out, (), "shipped model, --target-compression 6")


def with_codec(scratch: Path) -> Served:
    """The shipped model and a codec that is made into ``scratch``."""
    calibrate(scratch / "codec", "--target-compression", 4, quiet=False)
    settings = json.dumps({"palu": {"codec": str(scratch / "codec")}})
    flags = ("--additional-config", settings, "--speculative-config", json.dumps(DRAFTS))
    return Served(MODEL, flags, "shipped model with a codec, --target-compression 4, and n-gram drafts")
