"""How much memory does palu-compress need for a model of 7B shape?

``python -m benchmarks.compressor_memory [--json] [--samples N] [--seqlen N] [--group-size N] [--search NAME]
[--layers N]``

Writes a sharded bfloat16 checkpoint of random weights (hidden 4096, 32 heads, 2 layers unless told otherwise) in a
temporary directory, compresses it in a process of its own and compares the peak of that process's resident memory,
interpreter, libraries and file-backed pages included, with the limit: three layers' weights as stored plus the
calibration activations. ``baseline_bytes`` is the share of the interpreter with torch and transformers imported.
A Fisher search holds the whole model with gradients and is not bound by the limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from offline_compress.model_access import skeleton
from offline_compress.options import SEARCHES
from offline_compress.writer import CheckpointWriter, TensorSpec

SHARD_BYTES = 500_000_000
FLOAT32 = 4
WRITTEN_ROWS = 4096


def seven_billion_shape(num_layers: int) -> LlamaConfig:
    """Llama-2-7B with fewer layers."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )


def write_model(directory: Path, config: LlamaConfig) -> int:
    """Writes random weights, some rows at a time; returns the bytes of one layer."""
    config.save_pretrained(directory)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton(config).state_dict().items()}
    specs = [TensorSpec(name, torch.bfloat16, shape) for name, shape in shapes.items()]
    writer = CheckpointWriter(directory, specs, SHARD_BYTES)
    generator = torch.Generator().manual_seed(0)
    for spec in specs:
        writer.write(spec.name, random_rows(spec.shape, generator))
    writer.finish()
    return sum(spec.num_bytes for spec in specs if spec.name.startswith("model.layers.0."))


def random_rows(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A bfloat16 tensor in runs of rows: normal values, ones for a vector."""
    for start in range(0, shape[0], WRITTEN_ROWS):
        rows = torch.ones(min(WRITTEN_ROWS, shape[0] - start), *shape[1:], dtype=torch.bfloat16)
        yield rows if len(shape) == 1 else rows.normal_(0, 0.02, generator=generator)


def write_tokenizer(directory: Path) -> None:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def write_text(path: Path, tokens: int) -> None:
    """Random printable characters, one token each."""
    codes = torch.randint(33, 127, (tokens // 80 + 1, 79), generator=torch.Generator().manual_seed(1))
    path.write_text("\n".join("".join(map(chr, row)) for row in codes.tolist()) + "\n", encoding="utf-8")


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the model, compresses it, and returns one result row."""
    model, out, text = directory / "model", directory / "out", directory / "text.txt"
    config = seven_billion_shape(arguments.layers)
    layer_bytes = write_model(model, config)
    write_tokenizer(model)
    write_text(text, 2 * arguments.samples * arguments.seqlen)
    options = {
        "--rank-ratio": "0.5",
        "--group-size": arguments.group_size,
        "--search": arguments.search,
        "--calib-data": text,
        "--calib-samples": arguments.samples,
        "--calib-seqlen": arguments.seqlen,
        "--device": "cpu",
    }
    flags = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "offline_compress", str(model), str(out), *flags]
    estimate = json.loads(subprocess.run([*command, "--dry-run"], check=True, stdout=subprocess.PIPE).stdout)
    subprocess.run(command, check=True, stdout=sys.stderr)
    report = json.loads((out / "palu_report.json").read_text())
    activations = arguments.samples * arguments.seqlen * config.hidden_size * FLOAT32
    peak, limit = report["peak_memory_bytes"], 3 * layer_bytes + activations
    return {
        "layer_bytes": layer_bytes,
        "activation_bytes": activations,
        "limit_bytes": limit,
        "peak_bytes": peak,
        "baseline_bytes": report["baseline_memory_bytes"],
        "predicted_peak_bytes": estimate["predicted_peak_memory_bytes"],
        "peak_over_limit": round(peak / limit, 3),
        "predicted_over_peak": round(estimate["predicted_peak_memory_bytes"] / peak, 3),
        "within_limit": peak < limit,
        "seconds": report["seconds"],
        "samples": arguments.samples,
        "seqlen": arguments.seqlen,
        "group_size": arguments.group_size,
        "search": arguments.search,
        "packages": report["provenance"]["packages"],
        "git_revision": report["provenance"]["git_revision"],
    }


def main() -> int:
    """Prints the result; the exit code is 1 where the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--search", choices=SEARCHES, default="uniform")
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:32} {value / 2**20:.0f} MiB" if name.endswith("_bytes") else f"{name:32} {value}")
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
