"""What a codec costs on a text of the user, quickly: a few rows of it, by the dense model and by the coded one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from offline_compress.codec.judge import answers, coded_answers, divergence
from offline_compress.codec.pipeline import load_model
from offline_compress.run.errors import CompressionError, reason
from offline_compress.run.progress import OnEvent
from palu_vllm.format.codec.layer_codec import LayerCodec

CHARACTERS = 2_000_000  # of a text that are looked at


@dataclass(frozen=True)
class TextJudgeOptions:
    """Few tokens, so that a user can wait for them."""

    rows: int = 4  # at most, spread evenly over the text
    seqlen: int = 512  # tokens of a row
    least: int = 64  # tokens of a text that is judged at all


@dataclass(frozen=True)
class Judgement:
    """Means over ``tokens``: KL in nats from the dense model, and how often both have the same most likely token."""

    tokens: int
    kl: float
    same_top: float
    dense_perplexity: float
    coded_perplexity: float


def judge_text(
    directory: Path, text: Path, layers: Mapping[int, LayerCodec], options: TextJudgeOptions, on_event: OnEvent
) -> Judgement:
    """Judges the model in ``directory`` with the codecs of its ``layers``. Raises CompressionError, one sentence."""
    content = read_text(text)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompressionError(f"{directory} has no tokenizer ({reason(error)}); give a model with one.") from error
    rows = text_rows(content, tokenizer, options)
    if sum(map(len, rows)) < options.least:
        raise CompressionError(
            f"{text} has {sum(map(len, rows))} tokens; expected at least {options.least}: give more text."
        )
    return judged(load_model(directory, "cpu"), rows, layers, on_event)


def read_text(path: Path) -> str:
    """The first ``CHARACTERS`` of a file. Raises CompressionError."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise CompressionError(f"{path} is no text in UTF-8 ({reason(error)}); give a file with text.") from error


def text_rows(text: str, tokenizer: PreTrainedTokenizerBase, options: TextJudgeOptions) -> list[torch.Tensor]:
    """Token ids of rows of ``seqlen``, each begun as the tokenizer begins a text; one shorter row of a short text."""
    begin = tokenizer.encode("")
    ids = tokenizer.encode(text, add_special_tokens=False)
    fresh = options.seqlen - len(begin)
    rows = [begin + ids[start : start + fresh] for start in range(0, len(ids), fresh)]
    whole = [row for row in rows if len(row) == options.seqlen] or rows
    count = min(options.rows, len(whole))
    return [torch.tensor(whole[number * len(whole) // count]) for number in range(count)]


def judged(
    model: PreTrainedModel, rows: list[torch.Tensor], layers: Mapping[int, LayerCodec], on_event: OnEvent
) -> Judgement:
    """Over all tokens of ``rows``; tells of every row."""
    sums = torch.zeros(4, dtype=torch.float64)  # KL, same top tokens, losses of the dense and of the coded model
    tokens = scored = 0
    for number, row in enumerate(rows):
        dense, coded = answers(model, row), coded_answers(model, row, layers)
        kl = divergence(dense, coded)
        same = int((dense.argmax(-1) == coded.argmax(-1)).sum())
        losses = [-float(each[:-1].gather(-1, row[1:, None]).double().sum()) for each in (dense, coded)]
        sums += torch.tensor([kl * len(row), same, *losses], dtype=torch.float64)
        tokens, scored = tokens + len(row), scored + len(row) - 1
        on_event({"event": "row", "number": number, "of": len(rows), "kl": round(kl, 5)})
    kl, same, dense_loss, coded_loss = sums.tolist()
    return Judgement(tokens, kl / tokens, same / tokens, math.exp(dense_loss / scored), math.exp(coded_loss / scored))
