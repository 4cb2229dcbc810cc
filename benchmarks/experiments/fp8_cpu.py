"""Why does an fp8 cache in vLLM on a CPU score a lower perplexity than the dense model?

``python -m benchmarks.experiments.fp8_cpu`` writes ``benchmarks/results/fp8_cpu.json`` and prints a table. vLLM's CPU
kernels cut numbers towards zero where they store them; other casts round to the nearest. Each row sends keys and values
through one way of storing, simulated; ``in vLLM`` is what ``benchmarks.quality.table`` measured with vLLM itself.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.common.output import RESULTS, command_line, say, write_result
from benchmarks.common.output import table as markdown
from benchmarks.common.shipped import MODEL
from benchmarks.quality.held_out import add_options, judge_of, load
from benchmarks.quality.simulated_caches import Fp8, SimulatedCache

RESULT, QUALITY = RESULTS / "fp8_cpu.json", RESULTS / "quality_table.json"
KINDS = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def nearest(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` as the nearest numbers of ``dtype``, in the dtype of ``x``: what torch and GPUs do."""
    return x.to(dtype).to(x.dtype)


def towards_zero(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` with the digits cut off that ``dtype`` lacks: what vLLM does on a CPU."""
    largest = torch.finfo(dtype).max
    near = x.clamp(-largest, largest).to(dtype)
    too_large = near.to(x.dtype).abs() > x.abs()
    return (near.view(torch.uint8) - too_large.to(torch.uint8)).view(dtype).to(x.dtype)


def kept_length(x: torch.Tensor, dtype: torch.dtype) -> float:
    """The factor that a cut leaves of ``x``, by least squares; rounding to the nearest leaves 1."""
    return ((towards_zero(x, dtype) * x).sum() / (x * x).sum()).item()


def shorter(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` as short as a cut leaves it on average, and otherwise exact."""
    return x * kept_length(x, dtype)


def lengthened(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` cut, and its average length given back."""
    return towards_zero(x, dtype) / kept_length(x, dtype)


WAYS: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "nearest": nearest,
    "towards zero": towards_zero,
    "shorter, not rounded": shorter,
    "towards zero, lengthened": lengthened,
}


@dataclass(frozen=True)
class Stored(Fp8):
    """Numbers stored in 8-bit floats in one of the ways."""

    way: Callable[[torch.Tensor, torch.dtype], torch.Tensor]

    def keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Rotated keys ``[batch, heads, tokens, head_dim]`` as they would be read."""
        return self.way(keys, self.dtype)

    def values(self, values: torch.Tensor) -> torch.Tensor:
        return self.way(values, self.dtype)


def measured_in_vllm() -> list[dict[str, Any]]:
    """The rows of ``quality_table.json`` that vLLM served; it needs a CPU with AVX-512."""
    rows = {row["arm"]: row for row in json.loads(QUALITY.read_text())["rows"]}
    return [{"kind": kind, "way": "in vLLM", "perplexity": rows[f"{kind} in vLLM"]["perplexity"]} for kind in KINDS]


def table(rows: Sequence[dict[str, Any]], dense: float) -> str:
    """Markdown: ways of storing down, kinds across; perplexity and, in brackets, KL divergence."""
    found = {(row["way"], row["kind"]): row for row in rows}
    lines = [["dense", *[f"{dense:.4f}"] * len(KINDS)]]
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = (found[way, kind] for kind in KINDS)
        text = (f"{row['perplexity']:.4f}" + (f" ({row['kl']:.4f})" if "kl" in row else "") for row in cells)
        lines.append([way, *text])
    return markdown(["stored", *KINDS], lines)


def main() -> None:
    parser = command_line("benchmarks.experiments.fp8_cpu", __doc__, RESULT.name)
    add_options(parser, rows=16)  # those of benchmarks.quality.table
    options = parser.parse_args()
    judge, facts = judge_of(options)
    model, rows = load(MODEL), measured_in_vllm()
    for way, store in WAYS.items():
        for kind, dtype in KINDS.items():
            arm = Stored(dtype, store)
            rows.append({"kind": kind, "way": way} | judge.score(model, partial(SimulatedCache, arm)))
            say(rows[-1])
    write_result(options.out, {"rows": rows, **facts})
    print(table(rows, facts["dense"]["perplexity"]))


if __name__ == "__main__":
    main()
