"""Several files or datasets of calibration data, each with a fraction of the samples: ``a.jsonl=0.7 b.txt=0.3``."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from offline_compress.run.errors import CompressionError


class Ingredient(NamedTuple):
    """A file or dataset, and its fraction of the samples."""

    data: str
    fraction: float


def ingredients(data: str | Sequence[str]) -> list[Ingredient]:
    """Returns what is mixed; equal fractions where none are given. Raises: CompressionError for wrong fractions."""
    words = [data] if isinstance(data, str) else list(data)
    parsed = [_parsed(word) for word in words]
    given = [fraction for _, fraction in parsed if fraction is not None]
    if not given:
        return [Ingredient(name, 1 / len(parsed)) for name, _ in parsed]
    if len(given) < len(parsed):
        raise CompressionError("some calibration data has a fraction and some has none; give all of them, or none.")
    if not all(0 < fraction <= 1 for fraction in given) or not math.isclose(sum(given), 1, abs_tol=1e-6):
        raise CompressionError(f"the fractions of calibration data add up to {sum(given):g}; expected 1, each above 0.")
    return [Ingredient(name, fraction) for (name, _), fraction in zip(parsed, given, strict=True)]


def _parsed(word: str) -> tuple[str, float | None]:
    """A name and its fraction; a file whose own name ends like one has none."""
    name, equals, number = word.rpartition("=")
    if not equals or Path(word).expanduser().exists():
        return word, None
    try:
        return name, float(number)
    except ValueError:
        return word, None


def files_of(data: str | Sequence[str] | None) -> list[Path]:
    """Returns the paths of what is mixed, whether or not they are files."""
    return [Path(each.data) for each in ingredients(data)] if data else []


def counts(fractions: Sequence[float], available: Sequence[int], wanted: int) -> list[int]:
    """Returns the samples that each gives: together at most ``wanted``, and as few as keep the fractions."""
    possible = min([float(wanted), *(have / fraction for have, fraction in zip(available, fractions, strict=True))])
    return [round(possible * fraction) for fraction in fractions]
