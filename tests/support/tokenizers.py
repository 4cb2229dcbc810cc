"""Tokenizers of the kinds that models come with, trained in a moment on a few lines."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LINES = [
    "def f(x):\n    return x + 1\n", "The quick brown fox's jump over the lazy dog. ", "Größe über Straßen, naïve café",
    "你好，世界", "привет мир", "   spaces   and\ttabs\r\n", "1234567890 3.14", "مرحبا بالعالم", "🙂🙃 emoji",
] * 20  # fmt: skip
TOOLS_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(split: str | None = None) -> Tokenizer:
    """GPT-2's way, or that of tiktoken with a split of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        cut = pre_tokenizers.Split(Regex(split), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, ["<s>", "</s>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def metaspace() -> Tokenizer:
    """SentencePiece's way, as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _trained(tokenizer, ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])


def _trained(tokenizer: Tokenizer, special: list[str], **settings: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False, **settings)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


KINDS = {"GPT-2": byte_level, "cl100k": lambda: byte_level(CL100K), "metaspace": metaspace}


def write_tokenizer(directory: Path, kind: str, config: dict[str, Any], **settings: Any) -> Path:
    """Writes ``config.json`` and a tokenizer of a kind; ``settings`` go into ``tokenizer_config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    KINDS[kind]().save(str(directory / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TOOLS_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(told | settings))
    return directory
