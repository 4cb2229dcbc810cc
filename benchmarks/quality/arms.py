"""The arms of ``benchmarks.quality.table``: compressions by ``palu-compress``, and vLLM's own cache dtypes.

Palu arms are computed by transformers in float32 from a cache that really holds the packed bytes; ``benchmarks.
perplexity`` scores such checkpoints through vLLM. The dense model with fp8 runs in vLLM, which gives perplexity only.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.provenance import ROOT
from palu_vllm.format.config import AttentionGeometry
from palu_vllm.format.latent_format import BITS

RATIOS = (1.0, 0.75, 0.5, 0.35, 0.25)
UNROTATED_RATIO = 0.5  # where latents are also quantized as they are, to see what rotating them is worth
BUDGETS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
TIERS = {"8/4": "0.25:8,0.75:4", "4/3": "0.5:4,0.5:3", "4/2": "0.5:4,0.5:2"}
VLLM_DTYPES = ("fp8_e4m3", "fp8_e5m2")
Arm = dict[str, Any]


def settings(ratios: list[float], budgets: list[float]) -> Iterator[tuple[Arm, list[str]]]:
    """What an arm is called, and the options of ``palu-compress`` that make it."""
    for ratio in ratios:
        arm, ranks = {"arm": "palu", "ratio": ratio}, ["--rank-ratio", str(ratio)]
        yield arm | {"bits": "16", "rotation": "none"}, ranks
        rotations = {"hadamard": "--hadamard"} | ({"none": "--no-hadamard"} if ratio == UNROTATED_RATIO else {})
        for bits, (rotation, flag) in itertools.product(BITS[1:], rotations.items()):
            yield arm | {"bits": str(bits), "rotation": rotation}, [*ranks, "--latent-bits", str(bits), flag]
        for bits, tiers in TIERS.items():
            yield arm | {"bits": bits, "rotation": "hadamard"}, [*ranks, "--tiers", tiers]
    for budget in budgets:
        yield {"arm": "palu", "budget": budget}, ["--target-compression", str(budget)]


def palu_arms(options: argparse.Namespace, dtype: str) -> Iterator[tuple[Arm, torch.nn.Module]]:
    """Every setting with its bytes per token, and its model in float32."""
    data = ["--calib-data", str(options.calib_data), "--calib-samples", str(options.calib_samples), "--dtype", dtype]
    for arm, flags in settings(options.ratios, options.budgets):
        with tempfile.TemporaryDirectory(prefix="palu-quality-") as scratch:
            out = Path(scratch) / "out"
            command = [sys.executable, "-m", "offline_compress", str(options.model), str(out), *data, *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
            report = json.loads((out / "palu_report.json").read_text())
            if "budget" in arm:
                arm["predicted_error"] = report["budget"]["predicted_error"]
                arm["bits"] = "/".join(
                    "+".join(str(tier["bits"]) for tier in report[tiers]) for tiers in ("tiers_k", "tiers_v")
                )
            model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
            yield arm | {"bytes_per_token": report["bytes_per_token"]}, model


def vllm_arms(options: argparse.Namespace, geometry: AttentionGeometry) -> Iterator[Arm]:
    """The dense model with each cache dtype that vLLM runs here; those that it refuses are left out with a notice."""
    for dtype in VLLM_DTYPES:
        command = [sys.executable, "-m", "benchmarks.perplexity", "--model", str(options.model), "--dtype", "float32"]
        command += ["--text", str(options.text), "--context", str(options.context), "--limit", str(options.rows)]
        command += ["--spread", "--kv-cache-dtype", dtype, "--json"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if run.returncode:
            print(f"vLLM does not run {dtype} here: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        size = geometry.dense_bytes_per_token("float16") / 2
        perplexity = json.loads(run.stdout.splitlines()[-1])["perplexity"]
        yield {"arm": f"{dtype} in vLLM", "bytes_per_token": size, "perplexity": perplexity, "kl": None}
