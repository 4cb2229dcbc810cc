"""What a method is: knobs that make one store per request and layer.

A store takes the tokens of a step and gives back what attention shall see of all earlier steps. The first step of a
request is its prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch

Rotation = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Tokens(NamedTuple):
    """Tokens of one request and layer, all of one step. KV heads are never repeated for grouped queries."""

    keys: torch.Tensor  # [num_kv_heads, tokens, head_dim], rotated
    values: torch.Tensor  # [num_kv_heads, tokens, head_dim]
    queries: torch.Tensor  # [num_heads, tokens, head_dim], rotated
    positions: torch.Tensor  # [num_kv_heads, tokens], int64


def part(tokens: Tokens, which: slice) -> Tokens:
    """Some of the tokens of a step."""
    return Tokens(*(tensor[:, which] for tensor in tokens))


@dataclass(frozen=True)
class Layer:
    """Facts about a layer. ``dtype`` is that of numbers that a store keeps in full precision: the checkpoint's.

    ``rotation`` gives the cosines and sines ``[..., head_dim]`` of integer positions ``[...]``.
    """

    index: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    rotation: Rotation
    scale: float

    def empty(self) -> torch.Tensor:
        """Keys or values of no token."""
        return torch.empty(self.num_kv_heads, 0, self.head_dim, dtype=self.dtype)


class Store(ABC):
    """Keys and values of one request and layer, as the method holds them between steps.

    What is in ``constants`` belongs to the method, is the same for all requests, and is not counted.
    """

    constants: tuple[Any, ...] = ()

    @abstractmethod
    def append(self, tokens: Tokens) -> None:
        """Takes the tokens of a step, after they have been attended to."""

    @abstractmethod
    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[num_kv_heads, kept tokens, head_dim]``, floating, in any order: positions are in the keys.

        Oldest first where other layers read the store.
        """

    def nbytes(self) -> int:
        """Bytes of every tensor that the store can reach. A view counts with all the memory that it keeps alive."""
        held = {key: value for key, value in vars(self).items() if key != "constants"}
        return held_bytes(held)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """The published knobs of a method under their published names. Raises ValueError for knobs that contradict."""

    name: ClassVar[str]

    @abstractmethod
    def store(self, layer: Layer) -> Store:
        """An empty store of one request. Raises ValueError where the knobs do not fit the layer."""

    def source_layer(self, layer: int) -> int:
        """The layer, itself or an earlier one, whose store holds the keys and values that this one attends to."""
        return layer

    @property
    def lesson(self) -> Hashable:
        """Methods of one class and lesson learn the same of a model, so that it has to be ``studied`` once."""
        return None

    def studied(self, model: torch.nn.Module, rows: torch.Tensor) -> Any:
        """What there is to learn from ``model`` and token ids ``rows [rows, tokens]``."""
        return None

    def taught(self, found: Any) -> Self:
        """The method with what it takes from ``studied``; itself if nothing. Raises ValueError where nothing fits."""
        return self

    def calibrated(self, model: torch.nn.Module, rows: torch.Tensor) -> Self:
        """The method with what it learns from ``model`` and token ids ``rows [rows, tokens]``."""
        return self.taught(self.studied(model, rows))

    def __deepcopy__(self, memo: dict) -> Self:
        """Itself: copies of a cache share what the method has learnt."""
        return self


def expect(condition: bool, message: str) -> None:
    """Raises ValueError with ``message`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def held_bytes(held: Any) -> int:
    """Bytes of the memory behind all tensors within nested containers, dataclasses and stores, each counted once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in _storages(held) if storage.nbytes()}.values())


def _storages(held: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(held, torch.Tensor):
        yield held.untyped_storage()
    elif isinstance(held, Store):
        yield from _storages({key: value for key, value in vars(held).items() if key != "constants"})
    elif isinstance(held, dict):
        for part in held.values():
            yield from _storages(part)
    elif isinstance(held, list | tuple):
        for part in held:
            yield from _storages(part)
    elif is_dataclass(held) and not isinstance(held, Method | Layer):
        yield from _storages([getattr(held, field.name) for field in fields(held)])
