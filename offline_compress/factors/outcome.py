"""What is known of a projection once it is written."""

from typing import NamedTuple


class Outcome(NamedTuple):
    """Of one projection: its relative Frobenius error, 0 where it is stored uncompressed, and its clip ratio."""

    error: float
    clip: float
