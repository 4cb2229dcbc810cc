"""The arms of ``benchmarks.quality.table``: compressions by ``palu-compress``, and vLLM's own cache dtypes.

Palu arms are computed by transformers in float32 from a cache that really holds the packed bytes; ``benchmarks.
perplexity`` scores such checkpoints through vLLM. The dense model with fp8 runs in vLLM, which gives perplexity only.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.commands import CommandError, compress, perplexity
from benchmarks.quality.held_out import load
from palu_vllm.format.config import AttentionGeometry
from palu_vllm.format.latent_format import BITS

RATIOS = (1.0, 0.75, 0.5, 0.35, 0.25)
UNMIXED_RATIO = 0.5  # where latents are also quantized as they are, to see what mixing them is worth
BUDGETS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
TIERS = {"8/4": "0.25:8,0.75:4", "4/3": "0.5:4,0.5:3", "4/2": "0.5:4,0.5:2"}
VLLM_DTYPES = ("fp8_e4m3", "fp8_e5m2")
Arm = dict[str, Any]


def settings(ratios: list[float], budgets: list[float]) -> Iterator[tuple[Arm, list[str]]]:
    """What an arm is called, and the options of ``palu-compress`` that make it."""
    for ratio in ratios:
        arm, ranks = {"arm": "palu", "ratio": ratio}, ["--rank-ratio", str(ratio)]
        yield arm | {"bits": "16", "rotation": "none"}, ranks
        mixings = {"hadamard": "--hadamard"} | ({"none": "--no-hadamard"} if ratio == UNMIXED_RATIO else {})
        for bits, (mixing, flag) in itertools.product(BITS[1:], mixings.items()):
            yield arm | {"bits": str(bits), "rotation": mixing}, [*ranks, "--latent-bits", str(bits), flag]
        for name, tiers in TIERS.items():
            yield arm | {"bits": name, "rotation": "hadamard"}, [*ranks, "--tiers", tiers]
    for budget in budgets:
        yield {"arm": "palu", "budget": budget}, ["--target-compression", str(budget)]


def palu_arms(options: argparse.Namespace, dtype: str) -> Iterator[tuple[Arm, torch.nn.Module]]:
    """Every setting with its bytes per token, and its model in float32."""
    shared = ["--calib-samples", options.calib_samples, "--dtype", dtype]
    for arm, flags in settings(options.ratios, options.budgets):
        with tempfile.TemporaryDirectory(prefix="palu-quality-") as scratch:
            out = Path(scratch) / "out"
            report = compress(out, *shared, *flags, model=options.model, calibration=options.calib_data)
            if "budget" in arm:
                arm["predicted_error"] = report["budget"]["predicted_error"]
                arm["bits"] = "/".join(
                    "+".join(str(tier["bits"]) for tier in report[tiers]) for tiers in ("tiers_k", "tiers_v")
                )
            yield arm | {"bytes_per_token": report["bytes_per_token"]}, load(out)


def vllm_arms(options: argparse.Namespace, geometry: AttentionGeometry) -> Iterator[Arm]:
    """The dense model with each cache dtype that vLLM runs here; those that it refuses are left out with a notice."""
    for dtype in VLLM_DTYPES:
        asked = ["--context", options.context, "--limit", options.rows, "--spread", "--kv-cache-dtype", dtype]
        try:
            score = perplexity(options.model, *asked, "--dtype", "float32", text=options.text)["perplexity"]
        except CommandError as error:
            print(f"vLLM does not run {dtype} here: {error}", file=sys.stderr)
            continue
        size = geometry.dense_bytes_per_token("float16") / 2
        yield {"arm": f"{dtype} in vLLM", "bytes_per_token": size, "perplexity": score, "kl": None}
