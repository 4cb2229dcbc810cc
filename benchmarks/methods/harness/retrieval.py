"""Questions about a prompt that has been compressed, answered by greedy decoding.

The prompts are those of ``benchmarks.accuracy`` and, for recall, of ``demo/check.py``. Nothing of an answer is decided
before the cache was read: of a needle's or RULER's prompt the last token comes after the compression, so that methods
which look at the question have seen it; of recall whole questions do, several of them about one compressed prompt.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

from benchmarks.accuracy.tasks.haystack import Hay, common_words, share_found
from benchmarks.accuracy.tasks.haystack import Prompt as Whole
from benchmarks.accuracy.tasks.local_data import read_text
from benchmarks.accuracy.tasks.needle import MOST_CHARACTERS, NeedleTask
from benchmarks.accuracy.tasks.needle_styles import NEEDLE_STYLES, needle_style
from benchmarks.accuracy.tasks.ruler import RulerTask
from benchmarks.accuracy.tasks.ruler_styles import RULER_STYLES
from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.methods.harness.prompts import Arm, Prompt
from demo.rows import Corpus, random_facts

BATCH = 5  # prompts
DEPTHS = (0, 25, 50, 75, 100)  # per cent
FACTS, ASKED = 8, 4  # of a prompt of recall


@dataclass(frozen=True)
class Question:
    """What comes after the compressed prompt, and what the response is to contain."""

    ids: tuple[int, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Passage:
    """A prompt that is compressed, questions about it, each on its own, and where it belongs."""

    ids: tuple[int, ...]
    questions: tuple[Question, ...]
    subset: dict[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Passages of the same can be one batch."""
        return len(self.ids), *(len(question.ids) for question in self.questions)


@dataclass(frozen=True)
class Questions:
    """The passages of one column, and how long a response may be."""

    passages: tuple[Passage, ...]
    max_tokens: int
    stop: tuple[str, ...]


def question_within(prompts: Sequence[Whole], max_tokens: int, stop: tuple[str, ...]) -> Questions:
    """All but the last token of each prompt is compressed."""
    passages = (Passage(tuple(p.ids[:-1]), (Question(tuple(p.ids[-1:]), p.answers),), p.subset) for p in prompts)
    return Questions(tuple(passages), max_tokens, stop)


def needles(
    tokens: Tokens, haystack: str, style: str, lengths: Sequence[int], depths: Sequence[int], samples: int, seed: int
) -> Questions:
    """``NeedleTask`` with ``lengths`` tokens to compress. Raises ValueError for lengths that leave no haystack."""
    of_style = needle_style(style)
    more = of_style.max_tokens + 1
    whole = tuple(length + more for length in lengths)
    prompts = NeedleTask(haystack, of_style, whole, tuple(depths), samples, seed, chat=False).prompts(tokens)
    own = [Whole(p.ids, p.answers, p.subset | {"length": p.subset["length"] - more}) for p in prompts]
    return question_within(own, of_style.max_tokens, of_style.stop)


def ruler(tokens: Tokens, haystack: str, kind: str, style: str, length: int, samples: int, seed: int) -> Questions:
    """``RulerTask`` with about ``length`` tokens to compress. Raises ValueError where the needles do not fit."""
    of_style = RULER_STYLES[style]
    whole = (length + of_style.max_tokens + 1,)
    prompts = RulerTask(kind, haystack, style, whole, samples, seed, chat=False).prompts(tokens)
    return question_within(prompts, of_style.max_tokens, of_style.stop)


def recall(tokens: Tokens, haystack: str, length: int, samples: int, seed: int) -> Questions:
    """As ``demo/check.py``: facts at the start, text up to ``length`` tokens, then questions about ``ASKED`` of them.

    Raises ValueError where the facts do not fit.
    """
    text, style = read_text(haystack, MOST_CHARACTERS), NEEDLE_STYLES["demo"]
    corpus = Corpus(np.array(Hay(tokens, text).ids), common_words(tokens, text), tokens.tokenizer)
    rng, passages = np.random.default_rng(seed), []
    for _ in range(samples):
        facts = random_facts(corpus, rng, FACTS)
        stated = [*tokens.begin, *tokens.encode("".join(fact.statement for fact in facts))]
        if len(stated) >= length:
            raise ValueError(f"{FACTS} facts take {len(stated)} tokens; the prompt has only {length}.")
        ids = [*stated, *corpus.passage(rng, length - len(stated)).tolist()]
        asked = (Question(tuple(tokens.encode("\n" + f.question)), (f"{f.value}.",)) for f in facts[:ASKED])
        passages.append(Passage(tuple(ids), tuple(asked), {}))
    return Questions(tuple(passages), style.max_tokens, style.stop)


class Quiz:
    """Questions, their prompts run through the model once."""

    def __init__(self, dense: PreTrainedModel, tokens: Tokens, questions: Questions, dtype: torch.dtype) -> None:
        self.tokens, self.questions = tokens, questions
        self.prompts = [Prompt(dense, torch.tensor(passage.ids), dtype) for passage in questions.passages]

    @torch.inference_mode()
    def found(self, arm: Arm) -> list[float]:
        """RULER's share of answers in the response, of each question in the order of passages."""
        with arm.attention():
            return [score for batch in self._batches() for score in self._of_batch(arm, batch)]

    def _batches(self) -> Iterator[list[tuple[Passage, Prompt]]]:
        pairs = zip(self.questions.passages, self.prompts, strict=True)
        for _, same in groupby(pairs, key=lambda pair: pair[0].shape):
            ready = list(same)
            yield from (ready[i : i + BATCH] for i in range(0, len(ready), BATCH))

    def _of_batch(self, arm: Arm, batch: list[tuple[Passage, Prompt]]) -> list[float]:
        """The prompts are compressed once; every question goes on from a copy of the cache."""
        cache, scores = arm.compress([prompt for _, prompt in batch]), []
        for asked in zip(*(passage.questions for passage, _ in batch), strict=True):
            ids = torch.tensor([question.ids for question in asked])
            most, stop = self.questions.max_tokens, self.questions.stop
            responses = greedy(arm.model, copy.deepcopy(cache), ids, self.tokens, most, stop)
            scores.append([share_found(r, q.answers) for r, q in zip(responses, asked, strict=True)])
        return [score for of_passage in zip(*scores, strict=True) for score in of_passage]


def greedy(
    model: PreTrainedModel, cache: Cache, step: torch.Tensor, tokens: Tokens, most: int, stop: tuple[str, ...]
) -> list[str]:
    """The continuation of each row of ``step [batch, tokens]``, ``most`` tokens or up to the first text to stop at."""
    ids = step[:, :0]
    for _ in range(most):
        step = model(step, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], 1)
        texts = [tokens.decode(row) for row in ids.tolist()]
        if stop and all(any(each in text for each in stop) for text in texts):
            break
    return [text[: min([text.find(each) for each in stop if each in text], default=None)] for text in texts]
