"""What an arm is: a model whose attention reads keys and values as some cache would give them back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from palu_vllm.format.kv import KV

HALF = 2  # bytes of a number in 16 bits, which dense caches have


@dataclass(frozen=True)
class Heads:
    """The sizes of a model's cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> "Heads":
        text = config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(text.num_hidden_layers, text.num_key_value_heads, head_dim)

    @property
    def dense_bytes(self) -> int:
        """Of one token in 16 bits."""
        return 2 * HALF * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Layer:
    index: int
    num_layers: int


class Arm(ABC):
    """A setting of a method. ``simulated`` says that numbers go through codes and back within plain attention."""

    simulated = True

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def bytes_per_token(self, heads: Heads, context: int) -> float:
        """Bytes per token of a request that holds ``context`` tokens: codes, scales and what is kept as it is."""

    @abstractmethod
    def applied(self, dense: PreTrainedModel) -> Any:
        """A context manager that gives the model to judge; the dense model is as before afterwards."""


class CacheArm(Arm):
    """An arm on the dense model that stores keys and values after rotation, and reads them back."""

    @abstractmethod
    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        """``[batch, kv_heads, tokens, head_dim]`` as they come out of the cache, float32."""

    def exact(self, tokens: int, device: torch.device) -> KV[torch.Tensor] | None:
        """Which keys and values a query still sees as they were, bool ``[queries, tokens]``; None where nothing is."""
        return None

    @abstractmethod
    def head_bytes(self, head_dim: int) -> float:
        """Of the key and the value of one token and head, where they are coded."""

    def coded_fraction(self, heads: Heads, context: int) -> float:
        """Of the tokens and layers of a request, the fraction that is coded; the others have 16 bits."""
        return 1.0

    def bytes_per_token(self, heads: Heads, context: int) -> float:
        coded = self.coded_fraction(heads, context)
        size = heads.num_layers * heads.num_kv_heads * self.head_bytes(heads.head_dim)
        return coded * size + (1 - coded) * heads.dense_bytes

    @contextmanager
    def applied(self, dense: PreTrainedModel) -> Iterator[PreTrainedModel]:
        from benchmarks.judge.attention import reading_through

        with reading_through(dense, self):
            yield dense


@dataclass(frozen=True)
class Dense(CacheArm):
    """The model as it is: the reference, with KL zero."""

    simulated = False
    name = "dense"

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        return whole

    def head_bytes(self, head_dim: int) -> float:
        return 2 * HALF * head_dim
