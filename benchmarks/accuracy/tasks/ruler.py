"""RULER's retrieval and variable tracking at growing context, generated here.

Kinds and wording are those of Hsieh et al. 2024 (github.com/NVIDIA/RULER, Apache-2.0), whose prompts are quoted; keys
are pairs of words of the haystack text instead of its lists of nouns. The score is its ``string_match_all``: the share
of values that the response contains.
"""

import itertools
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.accuracy.report.scores import Score, subset_scores
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.haystack import NOISE, Hay, Prompt, common_words, place, share_found
from benchmarks.accuracy.tasks.local_data import identity, read_text
from benchmarks.accuracy.tasks.needle import MOST_CHARACTERS
from benchmarks.accuracy.tasks.ruler_styles import RULER_STYLES, RulerStyle
from benchmarks.accuracy.tasks.tokens import Tokens

HOPS = 4


@dataclass(frozen=True)
class Kind:
    """How many keys, values per key and keys asked for, and what they hide in: noise, text, or other needles."""

    hay: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_type: str = "words"
    value_type: str = "numbers"


KINDS = {
    "niah_single_1": Kind("noise"),
    "niah_single_2": Kind("text"),
    "niah_single_3": Kind("text", value_type="uuids"),
    "niah_multikey_1": Kind("text", keys=4),
    "niah_multikey_2": Kind("needles"),
    "niah_multikey_3": Kind("needles", key_type="uuids", value_type="uuids"),
    "niah_multivalue": Kind("text", values=4),
    "niah_multiquery": Kind("text", keys=4, queries=4),
}
RULER_TASKS = (*KINDS, "vt")


def draw(rng: random.Random, of_type: str, words: list[str]) -> str:
    """A key or value: two words, a number of seven digits, or a uuid."""
    if of_type == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if of_type == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return "-".join(rng.sample(words, 2)) if of_type == "words" else " ".join(rng.sample(words, 2))


@dataclass(frozen=True)
class Question:
    """What is hidden, what is asked and what is right."""

    needles: list[str]
    front: str
    back: str
    answers: tuple[str, ...]


def retrieval(kind: Kind, style: RulerStyle, rng: random.Random, words: list[str]) -> Question:
    """Needles in random order. Keys are distinct."""
    types = [style.type_of(kind.key_type), style.type_of(kind.value_type)]
    keys: dict[str, list[str]] = {}
    while len(keys) < kind.keys:
        keys[draw(rng, types[0], words)] = [draw(rng, types[1], words) for _ in range(kind.values)]
    needles = [style.needle_of(key, value, types[1]) for key, values in keys.items() for value in values]
    rng.shuffle(needles)
    asked = rng.sample(list(keys), kind.queries)
    front, back = style.ask(asked, types[1], kind.queries * kind.values > 1)
    return Question(needles, front, back, tuple(value for key in asked for value in keys[key]))


def variable_tracking(style: RulerStyle, rng: random.Random) -> Question:
    """A chain ``VAR A = 12345``, ``VAR B = VAR A``, ... whose variables are asked for; RULER's example is left out."""
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))
        names += [name] * (name not in names)
    number = str(rng.randint(10_000, 99_999))
    chain = [f"VAR {names[0]} = {number}", *(f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(names))]
    front, back = style.ask_variables(number, len(names))
    return Question([style.line(link) for link in chain], front, back, tuple(names))


@dataclass(frozen=True)
class RulerTask:
    """One kind at every length in tokens, response included, ``samples`` prompts each, needles at random depths."""

    kind: str
    haystack: str
    style: str
    lengths: tuple[int, ...]
    samples: int
    seed: int
    chat: bool

    @property
    def name(self) -> str:
        return f"ruler/{self.kind}"

    @property
    def tokens(self) -> int:
        return max(self.lengths)

    def settings(self) -> dict:
        return {"task": self.name, **vars(self), "haystack": identity(self.haystack)}

    def prompts(self, tokens: Tokens) -> list[Prompt]:
        """In the order of lengths and samples. Raises ValueError for a length too short for the needles."""
        text = read_text(self.haystack, MOST_CHARACTERS)
        words, rng, style = common_words(tokens, text), random.Random(self.seed), RULER_STYLES[self.style]
        kind = KINDS.get(self.kind, Kind("noise"))
        if style.single and (self.kind == "vt" or kind.values * kind.queries > 1):
            raise ValueError(f"--ruler-style {self.style} has one key and one value; not for {self.name}.")
        cut = haystack_of(tokens, kind, style, Hay(tokens, text if kind.hay == "text" else NOISE * 8), words)
        prompts = []
        for length, _ in itertools.product(self.lengths, range(self.samples)):
            question = variable_tracking(style, rng) if self.kind == "vt" else retrieval(kind, style, rng, words)
            prompts.append(self._prompt(tokens, cut, rng, question, length))
        return prompts

    def _prompt(self, tokens: Tokens, cut: Callable, rng: random.Random, question: Question, length: int) -> Prompt:
        front, back = tokens.wrap(question.front, question.back, self.chat)
        needles = [tokens.encode(needle) for needle in question.needles]
        used = len(front) + len(back) + sum(map(len, needles)) + RULER_STYLES[self.style].max_tokens
        if used > length:
            raise ValueError(f"--lengths {length} is too short for {self.name}; expected at least {used} tokens.")
        hay, ends = cut(rng, length - used)
        depths = sorted(rng.random() for _ in needles)
        filled = place(hay, list(zip(depths, needles, strict=True)), ends)
        return Prompt([*front, *filled, *back], question.answers, {"length": length})

    def run(self, engine: Engine, key: str) -> list[Score]:
        prompts, style = self.prompts(engine.tokens), RULER_STYLES[self.style]
        responses = engine.generate([prompt.ids for prompt in prompts], style.max_tokens, style.stop)
        found = [share_found(response, prompt.answers) for response, prompt in zip(responses, prompts, strict=True)]
        return subset_scores(key, self.name, "found", found, [prompt.subset for prompt in prompts])


def haystack_of(tokens: Tokens, kind: Kind, style: RulerStyle, hay: Hay, words: list[str]) -> Callable:
    """``cut(rng, length)``: that many ids of the haystack, or of whole needles at most, and where sentences end."""
    if kind.hay != "needles":
        return lambda rng, length: (hay.cut(rng, length), hay.ends)
    one = replace(kind, keys=1, values=1, queries=1)

    def cut(rng: random.Random, length: int) -> tuple[list[int], Callable[[int], bool]]:
        ids: list[int] = []
        while len(ids) + len(more := tokens.encode(retrieval(one, style, rng, words).needles[0])) <= length:
            ids += more
        return ids, hay.ends

    return cut
