"""Small random dense checkpoints of every family for tests, with a byte-level tokenizer and text to calibrate on."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

SIZES = {  # what vLLM serves
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
SMALL = SIZES | {  # what the compressor and transformers read
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
WORDS = ("the", "of", "and", "a", "to", "in", "he", "that", "it", "was", "his", "on", "with", "as", "had", "for", "her")


def build_small(directory: Path, family: str = "llama", **options: Any) -> Path:
    """Writes :func:`build_dense` in the sizes ``SMALL``; returns ``directory``."""
    return build_dense(directory, family, **(SMALL | options))


def build_even(directory: Path, family: str = "llama", **options: Any) -> Path:
    """Writes :func:`build_small` with matrices of one width, whose hidden states the embedding dominates."""
    return build_small(directory, family, seed=1, randomise=even, **options)


def build_dense(
    directory: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    randomise: Callable[[PreTrainedModel], None] | None = None,
    **overrides: Any,
) -> Path:
    """Writes a dense checkpoint with random weights, biases and norms of queries and keys; returns ``directory``."""
    config = AutoConfig.for_model(family, **(SIZES | overrides), dtype=dtype)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    (randomise or peaked)(model)
    model.generation_config.eos_token_id = config.eos_token_id
    logging.disable_progress_bar()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    byte_tokenizer(config.vocab_size).save_pretrained(directory)
    return directory


@torch.no_grad()
def peaked(model: PreTrainedModel) -> None:
    """Makes weights wide enough that attention is peaked and the next token depends on the whole context."""
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.normal_(1.6, 0.4)  # scores as wide as without norms
        elif "norm" not in name:
            fan_in = parameter.shape[-1] if parameter.dim() == 2 else 1
            width = 0.1 if "embed" in name else 0.3 if parameter.dim() == 1 else 1.5 * fan_in**-0.5
            parameter.normal_(0.0, width)


@torch.no_grad()
def even(model: PreTrainedModel) -> None:
    """Makes weights of one width, biases included."""
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.normal_(1, 0.3)
        elif "norm" not in name:
            parameter.normal_(0, 1.0 if "embed" in name else 0.15)


def byte_tokenizer(vocab_size: int = SIZES["vocab_size"]) -> PreTrainedTokenizerFast:
    """Has 256 byte tokens, then begin and end; the rest of the vocabulary has no text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + ["<s>", "</s>"] + [f"<unused{index}>" for index in range(vocab_size - 258)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def write_text(path: Path, words: int = 2000, seed: int = 0) -> Path:
    """Writes random sentences; returns ``path``."""
    chooser = random.Random(seed)
    lines = (" ".join(chooser.choices(WORDS, k=12)) + "." for _ in range(words // 12))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def edit_config(directory: Path, **changes: Any) -> Path:
    """Changes ``config.json``; a value of None removes the key. Returns ``directory``."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    removed = {key for key, value in changes.items() if value is None}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in removed}))
    return directory
