"""What does it cost to serve one checkpoint at several ratios, instead of compressing for each?

``python -m benchmarks.experiments.one_checkpoint`` writes ``benchmarks/results/one_checkpoint.json`` and prints a
table. A row is the shipped model with latents of one ratio and number of bits, by one way: compressed for them, or cut
from a larger checkpoint by the code that a server runs while it loads (``rank_ratio``, ``hadamard``;
``palu_vllm/loading``). Judged as in ``benchmarks.quality.table``, by transformers in float32.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.common.commands import compress
from benchmarks.common.output import command_line
from benchmarks.common.output import table as markdown
from benchmarks.experiments.harness import Row, conduct, scored
from benchmarks.quality.held_out import Judge
from palu_vllm.format.checkpoint import iterate_tensors, read_config
from palu_vllm.format.config import PaluConfig, whole_latent
from palu_vllm.loading.leading import leading_latents, ranks_at
from palu_vllm.loading.mixed import mixed_latents

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


def arms(samples: int, scratch: Path) -> Iterator[tuple[Row, Path]]:
    """What every row is called, and its checkpoint."""
    shared = ["--calib-samples", samples]
    for number, (ratio, bits) in enumerate(product(RATIOS, BITS)):
        own = scratch / f"own-{number}"
        compress(own, "--rank-ratio", ratio, "--latent-bits", bits, *shared)
        yield {"ratio": ratio, "bits": bits, "way": FOR_THE_RATIO}, own
    for source in SOURCES:
        whole = scratch / source.title
        compress(whole, "--rank-ratio", source.ratio, *source.options, *shared)
        for ratio, bits in product(RATIOS, BITS):
            made = cut(whole, scratch / f"{source.title}, {ratio}, {bits}", ratio, bits)
            yield {"ratio": ratio, "bits": bits, "way": source.title}, made


def rows(options: argparse.Namespace, judge: Judge, scratch: Path) -> Iterator[Row]:
    for row, checkpoint in arms(options.calib_samples, scratch):
        _, palu, geometry = read_config(checkpoint)
        size = palu.bytes_per_token(geometry, "float16")
        yield row | {"bytes_per_token": size} | judge.score_checkpoint(checkpoint)


def table(rows: list[Row]) -> str:
    """Ways down, ratios across."""
    lines = [
        [f"{way}, {bits}", *(scored(row) for row in rows if (row["way"], row["bits"]) == (way, bits))]
        for way, bits in dict.fromkeys((row["way"], row["bits"]) for row in rows)
    ]
    return markdown(["way, bits", *(f"{ratio:.1%}" for ratio in RATIOS)], lines)


def main() -> None:
    conduct(command_line("benchmarks.experiments.one_checkpoint", __doc__, "one_checkpoint.json"), rows, table)


if __name__ == "__main__":
    main()
