"""One value for keys beside one for values: ranks, formats, matrices. Standard library only."""

from collections.abc import Callable
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
