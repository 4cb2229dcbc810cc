"""A transformers cache that keeps one store per request and layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from benchmarks.methods.harness.interface import Layer, Method, Store, held_bytes


@dataclass(frozen=True)
class Step:
    """Rotated keys ``[batch, num_kv_heads, length, head_dim]`` of one step on their way to ``attention.attend``.

    transformers hands an attention function what ``update`` returned and no cache, so the stores travel with the keys.
    ``owned`` is False where a layer reads the stores of an earlier one.
    """

    keys: torch.Tensor
    stores: list[Store]
    owned: bool

    @property
    def shape(self) -> torch.Size:
        """Of the keys: kvpress, wherever it is imported, wraps all attention functions and looks at it."""
        return self.keys.shape


class MethodLayer(CacheLayerMixin):
    """One layer: a store per request, made at the first step."""

    is_sliding = False

    def __init__(self, method: Method, layer: Layer, source: "MethodLayer | None") -> None:
        super().__init__()
        self.method, self.layer, self.source = method, layer, source
        self.stores: list[Store] = []
        self.seen = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if self.source is None:
            self.stores = [self.method.store(self.layer) for _ in key_states]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[Step, torch.Tensor]:
        """Keys as a ``Step``; the values as they are. Nothing is stored before it has been attended to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        stores = self.stores if self.source is None else self.source.stores
        return Step(key_states, stores, owned=self.source is None), value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, padding included; a method may hold fewer."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.stores, self.seen, self.is_initialized = [], 0, False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise NotImplementedError("beam search is not supported by benchmarks.methods; sample or decode greedily.")


class MethodCache(Cache):
    """``past_key_values`` of a model whose attention implementation is ``attention.IMPLEMENTATION``.

    A step is taken as a whole: with several new tokens, each sees the earlier ones of its step uncompressed.
    """

    def __init__(self, method: Method, layers: Sequence[Layer]) -> None:
        made: list[MethodLayer] = []
        for layer in layers:
            source = method.source_layer(layer.index)
            made.append(MethodLayer(method, layer, None if source == layer.index else made[source]))
        super().__init__(layers=made)

    def nbytes(self) -> int:
        """Bytes that all requests and layers hold."""
        return held_bytes([layer.stores for layer in self.layers])

    def request_nbytes(self, request: int) -> int:
        """Bytes that one request holds."""
        return held_bytes([layer.stores[request] for layer in self.layers if layer.source is None])
