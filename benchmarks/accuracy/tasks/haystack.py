"""Haystacks: text of an exact number of tokens, with needles at chosen depths."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.accuracy.tasks.tokens import Tokens

SENTENCE_ENDS = (".", "!", "?", "\n")
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
LEAST_WORDS = 64


@dataclass(frozen=True)
class Prompt:
    """Token ids, what the response is to contain, and where this prompt belongs."""

    ids: list[int]
    answers: tuple[str, ...]
    subset: dict[str, int]


def place(
    haystack: Sequence[int], needles: Sequence[tuple[float, Sequence[int]]], ends: Callable[[int], bool]
) -> list[int]:
    """``haystack`` with each ``(depth, needle)`` put in, depth from 0 (start) to 1 (end).

    Within the haystack a needle moves back to the end of a sentence, a token for which ``ends`` holds.
    """
    pieces, last = [], 0
    for depth, needle in sorted(needles, key=lambda pair: pair[0]):
        position = round(depth * len(haystack))
        while last < position < len(haystack) and not ends(haystack[position - 1]):
            position -= 1
        pieces += [*haystack[last:position], *needle]
        last = position
    return [*pieces, *haystack[last:]]


def sentence_end(tokens: Tokens) -> Callable[[int], bool]:
    """Whether the text of a token ends a sentence."""
    return cache(lambda token: tokens.decode([token]).rstrip(" ").endswith(SENTENCE_ENDS))


class Hay:
    """The token ids of a text, from which haystacks of any length begin at random sentences."""

    def __init__(self, tokens: Tokens, text: str) -> None:
        self.ids = tokens.encode(text)
        if len(self.ids) < LEAST_WORDS:
            raise ValueError(f"the haystack has {len(self.ids)} tokens; expected a text of at least {LEAST_WORDS}.")
        self.ends = sentence_end(tokens)
        self._starts = [0, *(i + 1 for i, token in enumerate(self.ids[:-1]) if self.ends(token))]

    def cut(self, rng: random.Random, length: int) -> list[int]:
        """``length`` ids from the start of a sentence on; a short text repeats."""
        start = rng.choice(self._starts)
        count = -(-(start + length) // len(self.ids))
        return (self.ids * count)[start : start + length]


def common_words(tokens: Tokens, text: str) -> list[str]:
    """Words of ``text`` for keys and values: those of one token after a space where the tokenizer has enough of them.

    Raises ValueError for a text with too few different words.
    """
    counts = Counter(re.findall(r"[a-z]{3,}", text))
    words = sorted(word for word, _ in counts.most_common(2000))
    if len(words) < LEAST_WORDS:
        raise ValueError(f"the haystack has {len(words)} different words; expected at least {LEAST_WORDS}.")
    short = [word for word in words if len(tokens.encode(f" {word}")) == 1]
    return short if len(short) >= LEAST_WORDS else words


def share_found(response: str, answers: Sequence[str]) -> float:
    """RULER's ``string_match_all``: the share of answers that the response contains, whatever the case."""
    return sum(answer.lower() in response.lower() for answer in answers) / len(answers)
