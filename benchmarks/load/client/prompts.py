"""What is asked: prompts of a seeded generator or of a file, every one different.

A generated prompt is a list of token ids, so its length is exact and no tokenizer is needed; for the chat endpoint it
is as many words. Request ``index`` depends on nothing but the mix and ``index``, so any order of users sends the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load.client.lengths import Lengths, draw

FIRST_ID = 16  # smaller ids are special tokens of many models
INDEX_DIGITS = 4  # tokens that tell a prompt from every other one


@dataclass(frozen=True)
class Mix:
    """``prefix_share`` of prompts begin with the same ``prefix_tokens``; ``disconnect_share`` hang up in mid-stream."""

    seed: int
    prompt_tokens: Lengths
    output_tokens: Lengths
    vocabulary: int = 256
    prefix_share: float = 0.0
    prefix_tokens: int = 0
    disconnect_share: float = 0.0


@dataclass(frozen=True)
class Request:
    """``hang_up_after`` is the number of streamed chunks after which the client disconnects, None for never."""

    index: int
    prompt: list[int] | str
    max_tokens: int
    hang_up_after: int | None = None


def _digits(index: int, base: int) -> list[int]:
    return [index // base**place % base for place in range(INDEX_DIGITS)]


def _ids(mix: Mix, count: int, generator: np.random.Generator) -> list[int]:
    return generator.integers(FIRST_ID, mix.vocabulary, count).tolist()


def _hang_up(mix: Mix, max_tokens: int, generator: np.random.Generator) -> int | None:
    leaves = generator.random() < mix.disconnect_share
    return int(generator.integers(1, max(2, max_tokens))) if leaves else None


def generated(mix: Mix, index: int) -> Request:
    """Request ``index``: shared prefix or none, the digits of its index, random ids.

    No two prompts of one mix share a block of the prefix cache beyond the shared prefix. A drawn length that has no
    room for prefix, index and one token more is raised to it.
    """
    generator = np.random.default_rng([mix.seed, index])
    shares = generator.random() < mix.prefix_share
    length, max_tokens = draw(mix.prompt_tokens, generator), draw(mix.output_tokens, generator)
    prefix = _ids(mix, mix.prefix_tokens, np.random.default_rng(mix.seed)) if shares else []
    head = prefix + [FIRST_ID + digit for digit in _digits(index, mix.vocabulary - FIRST_ID)]
    prompt = head + _ids(mix, max(1, length - len(head)), generator)
    return Request(index, prompt, max_tokens, _hang_up(mix, max_tokens, generator))


def read_prompts(path: Path) -> list[tuple[str, int | None]]:
    """``(prompt, tokens of the answer or None)`` of every line: a string, or an object with ``prompt``.

    ``max_tokens``, or ``output_tokens`` as in the custom data set of ``vllm bench serve``, is the answer's length.
    Raises ValueError for an empty file, a line of another form, and a prompt that occurs twice.
    """
    found: dict[str, int | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        row = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f"{path.name}, line {number}: expected a string or an object with a string 'prompt'.")
        if row["prompt"] in found:
            raise ValueError(f"{path.name}, line {number}: this prompt has occurred before; every one must differ.")
        found[row["prompt"]] = row.get("max_tokens", row.get("output_tokens"))
    if not found:
        raise ValueError(f"{path.name} has no prompts.")
    return list(found.items())


def from_file(rows: Sequence[tuple[str, int | None]], mix: Mix, index: int) -> Request:
    """Request ``index`` of a file; once that is used up, again from its start with the number of the round in front."""
    generator = np.random.default_rng([mix.seed, index])
    turn, line = divmod(index, len(rows))
    prompt, max_tokens = rows[line]
    if max_tokens is None:
        max_tokens = draw(mix.output_tokens, generator)
    return Request(index, f"[{turn}] {prompt}" if turn else prompt, max_tokens, _hang_up(mix, max_tokens, generator))


def as_words(prompt: list[int] | str) -> str:
    """A prompt for the chat endpoint: a generated one has a word for every id."""
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
