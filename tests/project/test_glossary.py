"""The code uses no word that the glossary retires.

A retired word is looked for among the names in the code: ``rank_tile`` is found in ``RANK_TILE`` and ``KeyRankTiles``.
The last column of the glossary names folders where the word has another meaning, which is right there.
"""

import functools
import io
import keyword
import re
import subprocess
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("palu_vllm", "offline_compress", "benchmarks", "demo", "docs")
GLOSSARY = "docs/reference/glossary.md"


class Retired(NamedTuple):
    """A row of the glossary: what is not said, what instead, and folders where it means something else."""

    phrases: tuple[str, ...]
    instead: str
    allowed: tuple[str, ...]

    def found_in(self, names: set[str]) -> set[str]:
        return {name for name in names for phrase in self.phrases if contains(words_of(name), words_of(phrase))}


def retired_words() -> list[Retired]:
    """The rows of the glossary's table that retire something."""
    page = (ROOT / GLOSSARY).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+) \| (.*?) ?\| (.*?) ?\|$", page, re.MULTILINE)
    quoted = [(word, *(tuple(re.findall(r"`([^`]+)`", cell)) for cell in cells)) for _, word, *cells in rows]
    return [Retired(phrases, word, allowed) for word, phrases, allowed in quoted if phrases]


RETIRED = retired_words()


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in snake_case or CamelCase, in lower case and without the s of a plural."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return tuple(word.lower().removesuffix("s") for word in words)


def contains(name: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    return any(name[start : start + len(phrase)] == phrase for start in range(len(name)))


def names_in(source: str) -> set[str]:
    """The names in a source; text and comments are prose, and may tell what a word once was."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)}


@functools.cache
def names_by_file() -> dict[str, set[str]]:
    tracked = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.py"], text=True, cwd=ROOT)
    sources = [name for name in tracked.split() if name.split("/")[0] in FOLDERS and (ROOT / name).is_file()]
    return {name: names_in((ROOT / name).read_text(encoding="utf-8")) for name in sources}


def test_a_retired_word_would_be_found():
    names = names_in("RANK_TILE = 16  # a_comment\nclass KeyRankTiles:\n    text = 'rank_tile'\ntitle_of_rank = tile")
    assert Retired(("rank_tile",), "rank step", ()).found_in(names) == {"RANK_TILE", "KeyRankTiles"}


def test_words_are_retired():
    assert len(RETIRED) > 5


@pytest.mark.parametrize("retired", RETIRED, ids=lambda retired: retired.instead)
def test_no_name_has_a_retired_word(retired: Retired):
    elsewhere = {
        file: names for file, names in names_by_file().items() if not file.startswith(retired.allowed or ("-",))
    }
    found = {file: names for file in elsewhere if (names := retired.found_in(elsewhere[file]))}
    assert not found, f"the glossary says {retired.instead!r} instead: {found}"


@pytest.mark.parametrize("retired", RETIRED, ids=lambda retired: retired.instead)
def test_an_exception_is_needed(retired: Retired):
    """A folder that no longer uses the word in its other meaning is no exception any more."""
    for folder in retired.allowed:
        names = set().union(*(names for file, names in names_by_file().items() if file.startswith(folder)))
        assert retired.found_in(names), folder
