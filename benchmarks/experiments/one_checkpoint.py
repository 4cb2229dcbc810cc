"""What does it cost to serve one checkpoint at several ratios, instead of compressing for each?

``python -m benchmarks.experiments.one_checkpoint`` writes ``benchmarks/results/one_checkpoint.json`` and prints a
table. A row is the shipped model with latents of one ratio and number of bits, by one way: compressed for them, or cut
from a larger checkpoint by the code that a server runs while it loads (``rank_ratio``, ``hadamard``;
``palu_vllm/loading``). Judged as in ``benchmarks.quality.table``, by transformers in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.quality.held_out import add_options, judge_of
from palu_vllm.format.checkpoint import iterate_tensors, read_config
from palu_vllm.format.config import PaluConfig, whole_latent
from palu_vllm.loading.leading import leading_latents, ranks_at
from palu_vllm.loading.mixed import mixed_latents

RESULT = ROOT / "benchmarks" / "results" / "one_checkpoint.json"
RATIOS, BITS, UNQUANTIZED = (0.5, 0.35, 0.25, 0.125), (16, 4), 16


@dataclass(frozen=True)
class Source:
    """A checkpoint that is cut: the options of ``palu-compress`` that it was made with."""

    ratio: float
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return ", ".join([f"cut from {self.ratio:.0%}", *(each.removeprefix("--") for each in self.options)])


FOR_THE_RATIO = "compressed for it"
SOURCES = (
    Source(0.5),
    Source(0.9375, ("--search=uniform",)),
    Source(0.9375, ("--search=uniform", "--no-refit")),
)


def compress(out: Path, ratio: float, *options: str) -> Path:
    """Runs ``palu-compress`` on the shipped model; returns ``out``."""
    command = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--rank-ratio", str(ratio)]
    command += ["--calib-data", str(CALIBRATION), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    return out


def cut(checkpoint: Path, out: Path, ratio: float, bits: int) -> Path:
    """Writes what a server with ``{"rank_ratio": ratio, "latent_bits": bits}`` holds, mixed below 16 bits."""
    config, palu, geometry = read_config(checkpoint)
    rank_k, rank_v = ranks_at(palu, geometry, ratio)
    tiers = [tier.model_dump() for tier in whole_latent(bits)]
    changes = {"rank_k": rank_k, "rank_v": rank_v, "tiers_k": tiers, "tiers_v": tiers}
    changes["hadamard"] = bits != UNQUANTIZED
    served = config | {"palu_config": config["palu_config"] | changes}
    sides = palu, PaluConfig.from_hf_config(served), geometry
    tensors = dict(mixed_latents(leading_latents(iterate_tensors(checkpoint), *sides), *sides))
    out.mkdir()
    save_file({name: x.contiguous() for name, x in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(served))
    return out


def arms(scratch: Path, samples: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """Names of every row, and its checkpoint."""
    for ratio in RATIOS:
        for bits in BITS:
            out = compress(scratch / f"own-{ratio}-{bits}", ratio, samples, f"--latent-bits={bits}")
            yield {"ratio": ratio, "bits": bits, "way": FOR_THE_RATIO}, out
    for number, source in enumerate(SOURCES):
        whole = compress(scratch / f"source-{number}", source.ratio, samples, *source.options)
        for ratio in RATIOS:
            for bits in BITS:
                made = cut(whole, scratch / f"cut-{number}-{ratio}-{bits}", ratio, bits)
                yield {"ratio": ratio, "bits": bits, "way": source.title}, made


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ways down, ratios across."""
    head = f"| way, bits | {' | '.join(f'{ratio:.1%}' for ratio in RATIOS)} |"
    lines = [head, "|---" * (1 + len(RATIOS)) + "|"]
    for way, bits in dict.fromkeys((row["way"], row["bits"]) for row in rows):
        cells = [
            f"{row['perplexity']:.2f} ({row['kl']:.4f})" for row in rows if (row["way"], row["bits"]) == (way, bits)
        ]
        lines.append(f"| {way}, {bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.one_checkpoint", description=__doc__.splitlines()[0]
    )
    add_options(parser, RESULT)
    options = parser.parse_args()
    judge, facts = judge_of(options)
    found = []
    with tempfile.TemporaryDirectory(prefix="palu-one-") as scratch:
        for facts, checkpoint in arms(Path(scratch), f"--calib-samples={options.calib_samples}"):
            _, palu, geometry = read_config(checkpoint)
            facts["bytes_per_token"] = palu.bytes_per_token(geometry, "float16")
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
            found.append(facts | judge.score(model))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    options.out.write_text(json.dumps({"rows": found, **facts, "provenance": provenance()}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
