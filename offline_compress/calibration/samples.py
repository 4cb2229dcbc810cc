"""Calibration samples are equally long rows of real tokens, packed and never padded."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from offline_compress.calibration.mixture import Ingredient, counts, ingredients
from offline_compress.calibration.text import Chat, Document, read_documents
from offline_compress.run.errors import CompressionError, reason
from palu_vllm.format.checkpoint import read_json

# how much more text than needed is read, so that the seed has something to choose from
READ_AHEAD = 4


@dataclass(frozen=True)
class CalibrationSamples:
    """``tokens [samples, seqlen]`` int64 and where they come from."""

    name: str
    tokens: torch.Tensor

    @property
    def digest(self) -> str:
        """sha256 of the token ids: what was calibrated on, whatever file it came from."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()

    @property
    def label(self) -> str:
        count, seqlen = self.tokens.shape
        return f"{self.name}, {count} samples of {seqlen} tokens, sha256 {self.digest[:16]}"


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory. Raises CompressionError or CheckpointError if there is none that works."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).exists():
            read_json(directory / name)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompressionError(
            f"{directory} has no tokenizer that can be loaded ({reason(error)}); add its tokenizer files."
        ) from error


def pack(documents: Iterable[list[int]], separator: list[int], enough: int) -> list[int]:
    """One stream of tokens: documents in order with ``separator`` between them, until there are ``enough``."""
    stream: list[int] = []
    for document in documents:
        stream += separator if stream and document else []
        stream += document
        if len(stream) >= enough:
            break
    return stream


def cut_samples(stream: list[int], prefix: list[int], count: int, seqlen: int, seed: int) -> torch.Tensor:
    """Up to ``count`` windows of the stream that do not overlap, chosen by ``seed``, each after ``prefix``.

    Returns ``[samples, seqlen]`` int64. Raises ValueError if the stream does not fill one window.
    """
    width = seqlen - len(prefix)
    windows = len(stream) // width
    if windows == 0:
        raise ValueError(f"{len(stream)} tokens, less than one sample of {seqlen}")
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:count]
    rows = torch.tensor(stream[: windows * width]).view(windows, width)[order]
    return torch.cat([torch.tensor(prefix, dtype=torch.int64).expand(len(rows), -1), rows], dim=1)


def load_samples(
    data: str | Sequence[str],
    directory: Path,
    vocab_size: int,
    count: int,
    seqlen: int,
    seed: int,
    field: str | None = None,
) -> CalibrationSamples:
    """Samples of files or datasets in the tokens of the model in ``directory``, each with its fraction of them.

    Every sample begins with the tokens that the tokenizer puts before a text (BOS for Llama), as served prompts do.
    Raises: CompressionError if the text is too short or its tokens are not the model's.
    """
    tokenizer, mixed = load_tokenizer(directory), ingredients(data)
    parts = [_samples_of(each.data, tokenizer, count, seqlen, seed, field) for each in mixed]
    tokens = _mixed(parts, [each.fraction for each in mixed], count, seed)
    if int(tokens.max()) >= vocab_size:
        raise CompressionError(
            f"the tokenizer in {directory} gives token {int(tokens.max())}, the model has {vocab_size}; "
            "give a model directory whose tokenizer belongs to it."
        )
    return CalibrationSamples(_name(mixed), tokens)


def _samples_of(
    data: str, tokenizer: PreTrainedTokenizerBase, count: int, seqlen: int, seed: int, field: str | None
) -> torch.Tensor:
    """Up to ``count`` samples of one file or dataset."""
    documents = (_tokens(each, tokenizer, data) for each in read_documents(data, field))
    prefix = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream = pack(documents, separator, READ_AHEAD * count * seqlen)
    try:
        return cut_samples(stream, prefix, count, seqlen, seed)
    except ValueError as error:
        raise CompressionError(f"{data} has {error} tokens; give more text or shorter samples.") from error


def _tokens(document: Document, tokenizer: PreTrainedTokenizerBase, data: str) -> list[int]:
    """A chat through the model's template, which writes special tokens itself."""
    text = _rendered(document, tokenizer, data) if isinstance(document, Chat) else document
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _rendered(chat: Chat, tokenizer: PreTrainedTokenizerBase, data: str) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise CompressionError(f"{data} has chats, and the model has no chat template; give plain text.")
    try:
        return tokenizer.apply_chat_template(chat.messages, tools=chat.tools, tokenize=False)
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CompressionError(
            f"{data} has a chat that the model's chat template refuses ({reason(error)}); correct the file."
        ) from error


def _mixed(parts: list[torch.Tensor], fractions: list[float], count: int, seed: int) -> torch.Tensor:
    """The samples of all, in an order by ``seed`` where there are several."""
    if len(parts) == 1:
        return parts[0]
    wanted = counts(fractions, [len(part) for part in parts], count)
    if 0 in wanted:
        raise CompressionError(
            f"{count} samples of mixed calibration data leave none for one of them; give more samples or more text."
        )
    rows = torch.cat([part[:number] for part, number in zip(parts, wanted, strict=True)])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def _name(mixed: list[Ingredient]) -> str:
    """The names of files without their folders, with fractions where there are several."""
    names = [Path(data).name if Path(data).expanduser().is_file() else data for data, _ in mixed]
    if len(mixed) == 1:
        return names[0]
    return " + ".join(f"{name} ({each.fraction:.3g})" for name, each in zip(names, mixed, strict=True))
