"""Needle in a haystack: one sentence in a long text, asked for at its end, over lengths and depths.

``found`` is 1 where the response contains the answer; ``words`` is the share of the answer's words that it has
(ROUGE-1 recall), which tells nearly right from lost.
"""

import itertools
import random
from dataclasses import dataclass

from rouge_score.rouge_scorer import RougeScorer

from benchmarks.accuracy.report.scores import Score, subset_scores
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.haystack import Hay, Prompt, common_words, place, share_found
from benchmarks.accuracy.tasks.local_data import identity, read_text
from benchmarks.accuracy.tasks.needle_styles import NeedleStyle, bare
from benchmarks.accuracy.tasks.tokens import Tokens

MOST_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class NeedleTask:
    """The grid: ``samples`` prompts for every length in tokens, response included, and depth in per cent."""

    haystack: str
    style: NeedleStyle
    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    samples: int
    seed: int
    chat: bool

    name = "needle"

    @property
    def tokens(self) -> int:
        return max(self.lengths)

    def settings(self) -> dict:
        return {"task": self.name, **vars(self), "style": vars(self.style), "haystack": identity(self.haystack)}

    def prompts(self, tokens: Tokens) -> list[Prompt]:
        """In the order of lengths, depths and samples. Raises ValueError for a length that leaves no haystack."""
        text = read_text(self.haystack, MOST_CHARACTERS)
        hay, words, rng = Hay(tokens, text), common_words(tokens, text), random.Random(self.seed)
        cells = itertools.product(self.lengths, self.depths, range(self.samples))
        return [self._prompt(tokens, hay, words, rng, length, depth) for length, depth, _ in cells]

    def _prompt(
        self, tokens: Tokens, hay: Hay, words: list[str], rng: random.Random, length: int, depth: int
    ) -> Prompt:
        drawn = rng.sample(words, 4)
        style = self.style.filled(" ".join(drawn[:2]), " ".join(drawn[2:]))
        front, back = tokens.wrap(style.before, style.question, self.chat)
        needle = tokens.encode(style.needle)
        room = length - style.max_tokens - len(front) - len(needle) - len(back)
        if room < 0:
            raise ValueError(f"--lengths {length} leaves no haystack; expected at least {length - room} tokens.")
        filled = place(hay.cut(rng, room), [(depth / 100, needle)], hay.ends)
        return Prompt([*front, *filled, *back], (style.answer,), {"length": length, "depth": depth})

    def run(self, engine: Engine, key: str) -> list[Score]:
        prompts = self.prompts(engine.tokens)
        responses = engine.generate([prompt.ids for prompt in prompts], self.style.max_tokens, self.style.stop)
        pairs = list(zip(responses, prompts, strict=True))
        found = [share_found(response, prompt.answers) for response, prompt in pairs]
        words = [word_recall(response, prompt.answers[0]) for response, prompt in pairs]
        subsets = [prompt.subset for prompt in prompts]
        return [
            *subset_scores(key, self.name, "found", found, subsets),
            *subset_scores(key, self.name, "words", words, subsets),
        ]


def word_recall(response: str, answer: str) -> float:
    """The share of the answer's words that the response has, counted with multiplicity."""
    return RougeScorer(["rouge1"]).score(bare(answer), response)["rouge1"].recall
