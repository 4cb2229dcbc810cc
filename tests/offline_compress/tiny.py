"""Very small dense models with a byte tokenizer and English-like calibration text."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
WORDS = ("the", "of", "and", "a", "to", "in", "he", "that", "it", "was", "his", "on", "with", "as", "had", "for", "her")


def build_dense(directory: Path, family: str = "llama", max_shard_size: str = "1GB", **overrides: Any) -> Path:
    """Writes a dense checkpoint with random weights and biases; returns ``directory``."""
    dtype = overrides.pop("dtype", "float32")
    config = AutoConfig.for_model(family, **(SIZES | overrides), dtype=dtype)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.normal_(1, 0.3)
            elif "norm" not in name:
                parameter.normal_(0, 1.0 if "embed" in name else 0.15)
    logging.disable_progress_bar()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    byte_tokenizer().save_pretrained(directory)
    return directory


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 byte tokens, begin 256, end 257."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def write_text(path: Path, words: int = 2000, seed: int = 0) -> Path:
    """Random sentences; returns ``path``."""
    chooser = random.Random(seed)
    lines = (" ".join(chooser.choices(WORDS, k=12)) + "." for _ in range(words // 12))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def edit_config(directory: Path, **changes: Any) -> Path:
    """Changes ``config.json``; a value of None removes the key. Returns ``directory``."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return directory
