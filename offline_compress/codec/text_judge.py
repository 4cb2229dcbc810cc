"""What a codec costs on a text of the user, quickly: a few rows of it, by the dense model and by the coded one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from offline_compress.calibration.samples import load_samples
from offline_compress.codec.judge import answers, coded_answers, divergence
from offline_compress.codec.pipeline import load_model
from offline_compress.run.progress import OnEvent
from palu_vllm.format.codec.layer_codec import LayerCodec


@dataclass(frozen=True)
class TextJudgeOptions:
    """Few tokens, so that a user can wait for them."""

    rows: int = 4  # at most
    seqlen: int = 512  # tokens of a row
    seed: int = 0  # chooses the rows


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
    """Judges the model in ``directory`` with the codecs of its ``layers`` on rows of ``text``, any file that
    calibration reads. Raises CompressionError, one sentence.
    """
    vocab_size = AutoConfig.from_pretrained(directory).get_text_config().vocab_size
    samples = load_samples(str(text), directory, vocab_size, options.rows, options.seqlen, options.seed)
    return judged(load_model(directory, "cpu"), list(samples.tokens), layers, on_event)


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
