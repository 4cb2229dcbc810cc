"""How long prompts and answers are: ``fixed:N``, ``uniform:LOW:HIGH`` or ``lognormal:MEDIAN:SIGMA:MOST``, in tokens."""

from dataclasses import dataclass

import numpy as np

FORMS = "fixed:N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:MOST"
NUMBERS = {"fixed": 1, "uniform": 2, "lognormal": 3}


@dataclass(frozen=True)
class Lengths:
    """A distribution of whole numbers from 1; sigma is that of the logarithm, longer draws become MOST."""

    kind: str
    numbers: tuple[float, ...]

    @property
    def longest(self) -> int:
        return int(self.numbers[-1])


def parse_lengths(text: str) -> Lengths:
    """Raises ValueError, in one sentence, for anything but ``FORMS`` with sensible numbers."""
    kind, *parts = text.split(":")
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if kind not in NUMBERS or len(numbers) != NUMBERS[kind]:
        raise ValueError(f"expected lengths as {FORMS}, got {text!r}.")
    smallest = numbers[0]
    if smallest < 1 or numbers[-1] < smallest or (kind == "lognormal" and numbers[1] < 0):
        raise ValueError(f"expected lengths of at least 1 token, the smaller number first, got {text!r}.")
    return Lengths(kind, numbers)


def draw(lengths: Lengths, generator: np.random.Generator) -> int:
    """One length; the same for the same state of ``generator``."""
    if lengths.kind == "fixed":
        return lengths.longest
    if lengths.kind == "uniform":
        return int(generator.integers(int(lengths.numbers[0]), lengths.longest, endpoint=True))
    median, sigma, most = lengths.numbers
    return int(np.clip(round(median * np.exp(sigma * generator.standard_normal())), 1, most))
