"""Does it help quantized latents to store their component along their mean direction apart, in 16 bits?

``python -m benchmarks.mean_direction`` writes ``benchmarks/results/mean_direction.json`` and prints a table.

A latent is split as ``x = alpha m + P x``: m is its mean on calibration text, of length 1, alpha one 16-bit number per
token and group, and only ``P x`` is quantized. That is an orthogonal change of basis before a tier of one number of 16
bits and a tier of few bits, so it is *simulated* by sending the latents of a 16-bit checkpoint through such storage and
back, in transformers in float32. Beside it: the first latent (the largest singular value) kept apart in the same way,
and the mean subtracted without a number per token.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.perplexity import HELD_OUT
from benchmarks.provenance import ROOT, provenance
from benchmarks.quality_table import Judge, rows_of_text
from palu_vllm.latent_format import LatentFormat, Tier
from palu_vllm.packing import rounded
from palu_vllm.rotation import spreading_matrix

RESULT = ROOT / "benchmarks" / "results" / "mean_direction.json"
RATIOS, BITS, CALIBRATION_ROWS = (0.5, 0.25), (4, 3, 2), 8
WAYS = ("rotated", "mean subtracted", "first latent apart", "mean direction apart")
PARTS = {"K and V": ("k_down", "v_down"), "K": ("k_down",)}


def onto_first(direction: torch.Tensor) -> torch.Tensor:
    """Householder's reflections ``[groups, rank, rank]`` that take ``direction [groups, rank]`` to the first axis."""
    unit = direction / direction.norm(dim=-1, keepdim=True)
    normal = unit - torch.eye(unit.shape[-1]).to(unit)[0]
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return torch.eye(unit.shape[-1]).to(unit) - 2 * normal[:, :, None] * normal[:, None, :]


@dataclass(frozen=True)
class Apart:
    """Latents ``[tokens, groups, rank]`` there and back again in a way of ``WAYS``; ``mean [groups, rank]``."""

    way: str
    bits: int
    mean: torch.Tensor

    @property
    def form(self) -> LatentFormat:
        rank = self.mean.shape[-1]
        tiers = (Tier(1, 16), Tier(rank - 1, self.bits)) if self.way.endswith("apart") else (Tier(rank, self.bits),)
        return LatentFormat(tiers, "float16")

    def basis(self) -> torch.Tensor:
        """Orthogonal ``[groups, rank, rank]``, rows are the numbers that are stored."""
        blocks = (spreading_matrix(tier.size) if tier.is_quantized else torch.eye(1) for tier in self.form.tiers)
        spread = torch.block_diag(*blocks).to(self.mean).expand(len(self.mean), -1, -1)
        return spread @ onto_first(self.mean) if self.way == "mean direction apart" else spread

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        shift = self.mean if self.way == "mean subtracted" else torch.zeros_like(self.mean)
        basis = self.basis()
        stored = rounded(torch.einsum("tgr,gsr->tgs", latents - shift, basis), self.form)
        return torch.einsum("tgs,gsr->tgr", stored, basis) + shift


Change = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def changed(model: torch.nn.Module, changes: dict[str, Change]) -> Iterator[None]:
    """``model`` whose projections of these names put out what their change makes of it."""
    with ExitStack() as stack:
        for name, change in changes.items():
            hook = model.get_submodule(name).register_forward_hook(lambda _, __, out, change=change: change(out))
            stack.callback(hook.remove)
        yield


def means(model: torch.nn.Module, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every latent over ``rows [rows, context]``, ``[groups, rank]`` by the name of its projection."""
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, groups: int) -> Change:
        def change(out: torch.Tensor) -> torch.Tensor:
            sums[name] = sums.get(name, 0) + out.unflatten(-1, (groups, -1)).sum((0, 1))
            return out

        return change

    layers = model.model.layers
    names = {f"model.layers.{i}.self_attn.{part}": each.self_attn.shape.num_groups
             for i, each in enumerate(layers) for part in PARTS["K and V"]}  # fmt: skip
    with torch.inference_mode(), changed(model, {name: add(name, groups) for name, groups in names.items()}):
        model(rows)
    return {name: total / rows.numel() for name, total in sums.items()}


def through(apart: Apart) -> Change:
    """The change of a projection's output ``[batch, length, groups * rank]``."""
    groups = len(apart.mean)
    return lambda out: apart(out.unflatten(-1, (groups, -1)).flatten(0, 1)).reshape(out.shape)


def arms(found: dict[str, torch.Tensor]) -> Iterator[tuple[dict, dict[str, Apart]]]:
    """Names of an arm, and what it does to which latents; those not named in ``parts`` are rotated only."""
    for bits in BITS:
        for way in WAYS:
            for parts in PARTS if way != "rotated" else ("K and V",):
                chosen = {name: way if name.endswith(PARTS[parts]) else "rotated" for name in found}
                yield (
                    {"bits": bits, "way": way, "parts": parts},
                    {name: Apart(chosen[name], bits, mean) for name, mean in found.items()},
                )


def scored(ratio: float, rows: torch.Tensor, calibration: torch.Tensor, judge: Judge) -> Iterator[dict]:
    with tempfile.TemporaryDirectory(prefix="palu-mean-") as scratch:
        out = Path(scratch) / "out"
        command = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--calib-data", str(CALIBRATION)]
        subprocess.run([*command, "--rank-ratio", str(ratio)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    found = means(model, calibration)
    for facts, changes in arms(found):
        size = sum(len(each.mean) * each.form.bytes for each in changes.values())
        with changed(model, {name: through(each) for name, each in changes.items()}):
            yield {"ratio": ratio, **facts, "bytes_per_token": size, **judge.score(model)}


def table(rows: list[dict]) -> str:
    lines = ["| rank kept | bits | way | of | bytes per token | perplexity | KL |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['ratio']:.0%} | {row['bits']} | {row['way']} | {row['parts']} | {row['bytes_per_token']} "
            f"| {row['perplexity']:.2f} | {row['kl']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mean_direction", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="rows of held-out text to score, spread evenly over it")
    parser.add_argument("--context", type=int, default=1024, help="tokens per row")
    parser.add_argument("--ratios", type=float, nargs="*", default=RATIOS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = rows_of_text(MODEL, HELD_OUT, options.context, options.rows)
    calibration = rows_of_text(MODEL, CALIBRATION, options.context, CALIBRATION_ROWS)
    judge = Judge(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), rows)
    found = []
    for ratio in options.ratios:
        for row in scored(ratio, rows, calibration, judge):
            found.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    facts = {"context": options.context, "rows_of_text": options.rows, "simulated": True, "provenance": provenance()}
    options.out.write_text(json.dumps({"rows": found, **facts}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
