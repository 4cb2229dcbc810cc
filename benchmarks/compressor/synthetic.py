"""Writes a sharded checkpoint of random weights in the shape of a large model, some rows at a time.

``python -m benchmarks.compressor.synthetic DIRECTORY [--shape llama-2-7b] [--layers 4]``

Layers, hidden size and vocabulary are those of the real model, fewer layers unless told otherwise. Random weights have
flat spectra: good for memory and time, never for quality. Beside the weights: a tokenizer with bytes as tokens.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from offline_compress.checkpoint.writer import CheckpointWriter, TensorSpec
from offline_compress.model.access import skeleton

SHARD_BYTES = 500_000_000
WRITTEN_ELEMENTS = 1 << 24
SHAPES = {
    "llama-2-7b": {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32},
    "llama-3-8b": {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
}


def large_config(shape: str, num_layers: int) -> LlamaConfig:
    """The configuration of a model of ``SHAPES`` with ``num_layers`` layers."""
    return LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        num_hidden_layers=num_layers,
        max_position_embeddings=4096,
        dtype="bfloat16",
        **SHAPES[shape],
    )


def write_model(directory: Path, config: LlamaConfig) -> int:
    """Writes bfloat16 weights, their index, configuration and tokenizer; returns the bytes of one layer."""
    config.save_pretrained(directory)
    write_tokenizer(directory)
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
    rows = max(1, WRITTEN_ELEMENTS // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        part = torch.ones(min(rows, shape[0] - start), *shape[1:], dtype=torch.bfloat16)
        yield part if len(shape) == 1 else part.normal_(0, 0.02, generator=generator)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    write_model(arguments.directory, large_config(arguments.shape, arguments.layers))


if __name__ == "__main__":
    main()
