"""One value for keys beside one for values: ranks, formats, matrices. Standard library only."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class KV(NamedTuple, Generic[T]):
    """What a layer has of its keys and of its values. A model has ``list[KV[T]]``, one per layer."""

    key: T
    value: T

    def map(self, function: Callable[[T], R]) -> "KV[R]":
        """The results of ``function`` for both."""
        return KV(function(self.key), function(self.value))


def flattened(pairs: Iterable[KV[T]]) -> list[T]:
    """Both sides of every pair one after the other, for algorithms that do not ask which is which."""
    return [side for pair in pairs for side in pair]


def paired(sides: Sequence[T]) -> list[KV[T]]:
    """The pairs of :func:`flattened`."""
    return [KV(*pair) for pair in zip(sides[0::2], sides[1::2], strict=True)]
