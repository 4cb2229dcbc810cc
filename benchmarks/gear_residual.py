"""Does GEAR's residual store latents better than tiers, at equal bytes?

``python -m benchmarks.gear_residual`` writes ``benchmarks/results/gear_residual.json`` and prints a table. Latents of
16-bit checkpoints of the shipped model at several ratios go through every way of storing them that takes a budget's
bytes, in transformers in float32: *simulated*, see ``gear_storage.py``. Of each family the way of least KL divergence
on calibration text is scored on held-out text. Beside them: what ``palu-compress --target-compression`` chooses, which
has ranks, bits and tiers of K and V apart and really holds its bytes, as ``benchmarks.quality_table`` has measured it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM

from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.gear_storage import QUANTIZERS, Residual
from benchmarks.held_out import add_options
from benchmarks.mean_direction import Change, changed
from benchmarks.perplexity import HELD_OUT
from benchmarks.provenance import ROOT, provenance
from benchmarks.quality_table import RESULT as QUALITY
from benchmarks.quality_table import Judge, rows_of_text
from offline_compress.storage_grid import TIERS
from palu_vllm.config import AttentionGeometry
from palu_vllm.latent_format import UNQUANTIZED, LatentFormat, Shares, cut_into_tiers
from palu_vllm.packing import rounded
from palu_vllm.rotation import rotation_of_tiers

RESULT = ROOT / "benchmarks" / "results" / "gear_residual.json"
RATIOS, BUDGETS = (0.75, 0.5, 0.35, 0.25), (5, 6, 8, 10)
LEAST_SHARE = 0.9  # of a budget that a way of storing has to use
BITS, BLOCKS, ERROR_RANKS, OUTLIERS = (4, 3, 2), (16, 32), (0, 1, 2), (0, 1)
SIDES = ("k_down", "v_down")


class Way(Protocol):
    """A way of storing latents."""

    def bytes(self, width: int) -> float:
        """Per token and latent of ``width`` numbers."""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """``latents [tokens, groups, width]`` there and back again."""


@dataclass(frozen=True)
class Tiers:
    """As the packed cache has them: rotated tier by tier, a scale and a minimum each."""

    shares: Shares

    def form(self, width: int) -> LatentFormat:
        return LatentFormat(cut_into_tiers(width, self.shares), "float16")

    def bytes(self, width: int) -> float:
        return self.form(width).bytes

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        form = self.form(latents.shape[-1])
        rotation = rotation_of_tiers(form.tiers).to(latents)
        return rounded(latents @ rotation, form) @ rotation


def families() -> dict[str, list[Way]]:
    """Everything that is tried."""
    residuals = product(QUANTIZERS, BITS, BLOCKS, ERROR_RANKS, OUTLIERS)
    return {
        "tiers": [Tiers(shares) for shares in TIERS if shares != ((1.0, UNQUANTIZED),)],
        "gear": [Residual(*knobs) for knobs in residuals if any(knobs[-2:])],
    }


def bytes_per_token(way: Way, model: torch.nn.Module) -> float:
    shapes = [layer.self_attn.shape for layer in model.model.layers]
    return sum(s.num_groups_k * way.bytes(s.rank_k) + s.num_groups_v * way.bytes(s.rank_v) for s in shapes)


def stored(way: Way, model: torch.nn.Module) -> dict[str, Change]:
    """What :func:`changed` takes."""
    changes: dict[str, Change] = {}
    for number, layer in enumerate(model.model.layers):
        shape = layer.self_attn.shape
        for side, groups in zip(SIDES, (shape.num_groups_k, shape.num_groups_v), strict=True):
            changes[f"model.layers.{number}.self_attn.{side}"] = lambda out, groups=groups: torch.stack(
                [way(row.unflatten(-1, (groups, -1))).flatten(1) for row in out]
            )
    return changes


def score(way: Way, model: torch.nn.Module, judge: Judge) -> dict[str, float]:
    with changed(model, stored(way, model)):
        return judge.score(model)


def compressed(out: Path, samples: int, *options: str) -> torch.nn.Module:
    """The shipped model after ``palu-compress``, in float32."""
    command = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--calib-data", str(CALIBRATION)]
    command += ["--calib-samples", str(samples), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


@dataclass(frozen=True)
class Tried:
    """One way at one ratio; ``kl`` on calibration text."""

    family: str
    ratio: float
    way: Way
    bytes: float
    kl: float


def tried(models: dict[float, torch.nn.Module], budgets: list[float], judge: Judge) -> Iterator[Tried]:
    """All ways that use at least ``LEAST_SHARE`` of one of ``budgets``, bytes per token, and no more than all of it."""
    for (ratio, model), (family, ways) in product(models.items(), families().items()):
        for way in ways:
            size = bytes_per_token(way, model)
            if any(LEAST_SHARE * budget <= size <= budget for budget in budgets):
                found = Tried(family, ratio, way, size, score(way, model, judge)["kl"])
                print(found, file=sys.stderr, flush=True)
                yield found


def known_budgets(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``benchmarks.quality_table`` for ``BUDGETS``; none where it was made with other ``facts``."""
    result = json.loads(path.read_text())
    if any(result[name] != value for name, value in facts.items()):
        return []
    kept, commit = ("bytes_per_token", "perplexity", "kl"), result["provenance"]["commit"]
    rows = {row.get("budget"): {name: row[name] for name in kept} for row in result["rows"]}
    return [{"times": times, "family": "palu-compress", "commit": commit} | rows[times] for times in BUDGETS]


def compared(scratch: Path, samples: int, selecting: Judge, judge: Judge) -> Iterator[dict[str, Any]]:
    """The rows of all budgets."""
    dense = AttentionGeometry.from_hf_config(json.loads((MODEL / "config.json").read_text()))
    models = {ratio: compressed(scratch / str(ratio), samples, f"--rank-ratio={ratio}") for ratio in RATIOS}
    budgets = {times: dense.dense_bytes_per_token("float16") / times for times in BUDGETS}
    found = list(tried(models, list(budgets.values()), selecting))
    for times, budget in budgets.items():
        for family in families():
            fitting = [one for one in found if one.family == family and LEAST_SHARE * budget <= one.bytes <= budget]
            best = min(fitting, key=lambda one: one.kl)
            facts = {"times": times, "family": family, "tried": len(fitting), "ratio": best.ratio, "way": str(best.way)}
            yield facts | {"bytes_per_token": best.bytes} | score(best.way, models[best.ratio], judge)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| times fewer bytes | family | bytes per token | perplexity | KL | chosen of | way |", "|---" * 7 + "|"]
    for row in rows:
        chosen = f"{row['tried']} | {row['ratio']:.0%}, {row['way']}" if "way" in row else "| "
        lines.append(
            f"| {row['times']} | {row['family']} | {row['bytes_per_token']:.0f} | {row['perplexity']:.2f} "
            f"| {row['kl']:.4f} | {chosen} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gear_residual", description=__doc__.splitlines()[0])
    add_options(parser, RESULT)
    parser.set_defaults(rows=16)
    parser.add_argument("--selecting-rows", type=int, default=2, help="rows of calibration text to choose ways by")
    options = parser.parse_args()
    dense = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    texts = (CALIBRATION, options.selecting_rows), (HELD_OUT, options.rows)
    judges = [Judge(dense, rows_of_text(MODEL, text, options.context, rows)) for text, rows in texts]
    facts = {"context": options.context, "rows_of_text": options.rows, "calibration_samples": options.calib_samples}
    with tempfile.TemporaryDirectory(prefix="palu-gear-") as scratch:
        rows = known_budgets(QUALITY, facts) + list(compared(Path(scratch), options.calib_samples, *judges))
    rows.sort(key=lambda row: row["times"])
    facts |= {"dense": judges[1].score(dense), "selecting_rows": options.selecting_rows, "simulated": True}
    options.out.write_text(json.dumps({"rows": rows, **facts, "provenance": provenance()}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
