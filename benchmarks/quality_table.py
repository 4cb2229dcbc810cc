"""Quality against bytes per token: ``python -m benchmarks.quality_table [--model DIR] [--text FILE]``.

Perplexity and the Kullback-Leibler divergence from the dense model's next-token distribution, on the same rows of
held-out text, for rank ratios times bits, with and without rotation of the latents, and tiers; beside them caches that
only quantize, simulated (``simulated_caches.py``). Palu arms are computed by transformers in float32 from a cache that
really holds the packed bytes; bytes per token are those of the checkpoint's dtype. ``benchmarks.perplexity`` scores the
same checkpoints through vLLM.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.demo import CALIBRATION, MODEL
from benchmarks.perplexity import HELD_OUT, rows_of
from benchmarks.provenance import ROOT, provenance
from benchmarks.quality_plot import plot, tables
from benchmarks.simulated_caches import ARMS, SimulatedCache
from palu_vllm.config import AttentionGeometry, PaluConfig
from palu_vllm.latent_format import BITS

RESULT = ROOT / "benchmarks" / "results" / "quality_table.json"
PLOT = ROOT / "docs" / "images" / "quality.png"
RATIOS = (1.0, 0.75, 0.5, 0.35, 0.25)
TIERS = {"8/4": ((0.25, 8), (0.75, 4)), "4/3": ((0.5, 4), (0.5, 3)), "4/2": ((0.5, 4), (0.5, 2))}
UNIFORM = {str(bits): ((1.0, bits),) for bits in BITS}
BATCH = 4  # rows


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, rows: torch.Tensor, make_cache: Callable | None) -> torch.Tensor:
    """Float32 ``[rows, context - 1, vocabulary]`` of the tokens after the first of ``rows [rows, context]``."""
    options = {"past_key_values": make_cache()} if make_cache else {}
    return model(rows, use_cache=True, **options).logits[:, :-1].float().log_softmax(-1)


class Judge:
    """Scores models on fixed rows against the dense model, whose distributions are kept in float16."""

    def __init__(self, dense: torch.nn.Module, rows: torch.Tensor) -> None:
        self.batches = rows.split(BATCH)
        self.dense = [log_probabilities(dense, batch, None).half() for batch in self.batches]

    def score(self, model: torch.nn.Module, make_cache: Callable | None = None) -> dict[str, float]:
        """Perplexity, and KL(dense || model) in nats per token."""
        loss, divergence, tokens = 0.0, 0.0, 0
        for batch, reference in zip(self.batches, self.dense, strict=True):
            found, reference = log_probabilities(model, batch, make_cache), reference.float()
            loss -= found.gather(-1, batch[:, 1:, None]).sum().item()
            divergence += (reference.exp() * (reference - found)).sum().item()
            tokens += batch[:, 1:].numel()
        return {"perplexity": round(math.exp(loss / tokens), 4), "kl": round(divergence / tokens, 5)}


def rows_of_text(model: Path, text: Path, context: int, limit: int) -> torch.Tensor:
    """Int64 ``[rows, context]``, spread evenly over the text; a shorter last row is left out."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = [row for row in rows_of(ids, context, tokenizer.encode("")) if len(row) == context]
    if not rows:
        sys.exit(f"{text} has {len(ids)} tokens; expected at least one row of --context {context}.")
    count = min(limit, len(rows))
    return torch.tensor([rows[i * len(rows) // count] for i in range(count)])


def compress(model: Path, out: Path, calibration: Path, *flags: str) -> Path:
    command = [sys.executable, "-m", "offline_compress", str(model), str(out), "--calib-data", str(calibration), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    return out


def load(directory: Path, tiers: tuple[tuple[float, int], ...]) -> tuple[torch.nn.Module, PaluConfig]:
    """The checkpoint in float32 with other bits in its cache, and its configuration."""
    config = AutoConfig.from_pretrained(directory)
    shares = [{"share": share, "bits": bits} for share, bits in tiers]
    searched_for_other_bits = {"clip_k": None, "clip_v": None}
    config.palu_config = {**config.palu_config, "tiers_k": shares, "tiers_v": shares, **searched_for_other_bits}
    model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32)
    return model.eval(), PaluConfig.from_hf_config(config.to_dict())


def palu_rows(options: argparse.Namespace, judge: Judge, geometry: AttentionGeometry, dtype: str) -> Iterator[dict]:
    """One compression per ratio and rotation; bits are chosen when it is loaded, tiers have rotations of their own."""
    settings = [("none", ["--no-hadamard"], UNIFORM), ("hadamard", ["--hadamard"], UNIFORM)]
    for name, shares in TIERS.items():
        flag = ",".join(f"{share}:{bits}" for share, bits in shares)
        settings.append(("hadamard", ["--hadamard", "--tiers", flag], {name: shares}))
    for ratio, (rotation, flags, arms) in itertools.product(options.ratios, settings):
        with tempfile.TemporaryDirectory(prefix="palu-quality-") as scratch:
            ranks = ["--rank-ratio", str(ratio)]
            out = compress(options.model, Path(scratch) / "out", options.calib_data, *ranks, *flags)
            for name, tiers in arms.items():
                if rotation == "hadamard" and name == "16":
                    continue  # exact either way
                model, palu = load(out, tiers)
                arm = {"arm": "palu", "ratio": ratio, "bits": name, "rotation": rotation}
                yield arm | {"bytes_per_token": palu.bytes_per_token(geometry, dtype)} | judge.score(model)


def all_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    config = json.loads((options.model / "config.json").read_text())
    geometry, dtype = AttentionGeometry.from_hf_config(config), config.get("dtype") or config["torch_dtype"]
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    judge = Judge(dense, rows_of_text(options.model, options.text, options.context, options.rows))
    bytes_per_token = geometry.dense_bytes_per_token(dtype)
    yield {"arm": "dense", "bytes_per_token": bytes_per_token, **judge.score(dense)}
    for arm in ARMS:
        scored = judge.score(dense, lambda arm=arm: SimulatedCache(arm))
        yield {"arm": arm.name, "bytes_per_token": arm.bytes_per_token(geometry), **scored}
    yield from palu_rows(options, judge, geometry, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_table", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--calib-data", type=Path, default=CALIBRATION)
    parser.add_argument("--context", type=int, default=1024, help="tokens per row")
    parser.add_argument("--rows", type=int, default=24, help="rows of text to score, spread evenly over it")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file (default: that of the README)")
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    rows = []
    for row in all_rows(options):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    facts = {"context": options.context, "rows_of_text": options.rows, "text": options.text.name}
    options.out.write_text(json.dumps({"rows": rows, **facts, "provenance": provenance()}, indent=1) + "\n")
    plot(rows, options.plot)
    print(tables(rows))


if __name__ == "__main__":
    main()
