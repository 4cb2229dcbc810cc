"""Training rows: plain text, passages that return, and key-value recall.

Every builder returns ``[length]`` int64 token ids. Passages that return and facts that are asked for
later are what teaches a small model to look back into its cache within minutes of training.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Corpus:
    """Token ids of one split, the documents joined by the end-of-text token."""

    stream: np.ndarray  # [tokens] int64
    words: list[str]  # words that are one token after a space; keys and values of the recall rows
    tokenizer: PreTrainedTokenizerBase

    def passage(self, rng: np.random.Generator, length: int) -> np.ndarray:
        start = int(rng.integers(0, len(self.stream) - length))
        return self.stream[start : start + length]

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)


def build_corpus(tokenizer: PreTrainedTokenizerBase, documents: list[str], seed: int, min_count: int = 50) -> Corpus:
    order = np.random.default_rng(seed).permutation(len(documents))
    ids = [
        i for d in order for i in [*tokenizer.encode(documents[d], add_special_tokens=False), tokenizer.eos_token_id]
    ]
    counts = Counter(re.findall(r"[a-z]{3,}", " ".join(documents)))
    words = sorted(w for w, n in counts.items() if n >= min_count and f"Ġ{w}" in tokenizer.get_vocab())
    return Corpus(stream=np.array(ids, dtype=np.int64), words=words, tokenizer=tokenizer)


def plain_row(corpus: Corpus, rng: np.random.Generator, length: int) -> np.ndarray:
    return corpus.passage(rng, length)


def returning_row(corpus: Corpus, rng: np.random.Generator, length: int) -> np.ndarray:
    """Two passages that alternate with fresh text: A, fresh, B, fresh, A, fresh, B, ..."""
    size = int(rng.integers(24, max(25, min(200, length // 6))))
    passages = [corpus.passage(rng, size) for _ in range(2)]
    parts, total, turn = [], 0, 0
    while total < length:
        gap = corpus.passage(rng, int(rng.integers(8, max(9, length // 5))))
        parts += [passages[turn % 2], gap]
        total += size + len(gap)
        turn += 1
    return np.concatenate(parts)[:length]


@dataclass(frozen=True)
class Fact:
    key: str
    value: str

    @property
    def statement(self) -> str:
        return f"The token of {self.key} is {self.value}.\n"

    @property
    def question(self) -> str:
        return f"The token of {self.key} is"

    def chat(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"What is the token of {self.key}?"}, self.answer()]

    def answer(self) -> dict[str, str]:
        return {"role": "assistant", "content": f"The token of {self.key} is {self.value}."}


def random_facts(corpus: Corpus, rng: np.random.Generator, count: int) -> list[Fact]:
    """Facts with distinct two-word keys and two-word values."""
    picks = [rng.choice(len(corpus.words), size=4, replace=False) for _ in range(count)]
    facts = [Fact(" ".join(corpus.words[i] for i in p[:2]), " ".join(corpus.words[i] for i in p[2:])) for p in picks]
    return list({fact.key: fact for fact in facts}.values())


def recall_row(corpus: Corpus, rng: np.random.Generator, length: int) -> np.ndarray:
    """Facts, fresh text, then the same facts asked for in another order, as text or as chat."""
    facts = random_facts(corpus, rng, int(rng.integers(2, max(3, min(24, length // 48)))))
    stated = corpus.encode("".join(fact.statement for fact in facts))
    order = [facts[i] for i in rng.permutation(len(facts))]
    if rng.random() < 0.3:
        turns = [turn for fact in order for turn in fact.chat()]
        asked = corpus.encode(corpus.tokenizer.apply_chat_template(turns, tokenize=False))
    else:
        asked = corpus.encode("\n" + "".join(fact.statement for fact in order))
    gap = max(8, length - len(stated) - len(asked))
    row = np.concatenate([stated, corpus.passage(rng, int(rng.integers(4, gap + 1))), asked])
    tail = corpus.passage(rng, length)
    return np.concatenate([row, tail])[:length]


BUILDERS = {"plain": plain_row, "returning": returning_row, "recall": recall_row}


def batch(corpus: Corpus, rng: np.random.Generator, rows: int, length: int, mix: dict[str, float]) -> np.ndarray:
    """``[rows, length]`` int64; ``mix`` gives the share of each builder. Most rows start with begin of text."""
    names = rng.choice(list(mix), size=rows, p=list(mix.values()))
    ids = np.stack([BUILDERS[name](corpus, rng, length) for name in names])
    ids[rng.random(rows) < 0.9, 0] = corpus.tokenizer.bos_token_id
    return ids
