"""Prompts that are run through the model once and then given to every method.

A prompt attends to itself uncompressed, so what the layers hand to their stores is the same for all methods.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedModel

from benchmarks.methods.harness.attention import layers_of, methods_attention
from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.harness.dense import Dense, DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, held_bytes


class RecordingStore(DenseStore):
    """Keeps the step itself."""

    def append(self, tokens: Tokens) -> None:
        self.tokens = tokens


@dataclass(frozen=True, kw_only=True)
class Recording(Method):
    """What the layers of a model hand to their stores."""

    name = "recording"

    def store(self, layer: Layer) -> Store:
        return RecordingStore(layer)


class Prompt:
    """The tokens of one prompt in every layer; ``row`` int64 ``[tokens]``."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, row: torch.Tensor, dtype: torch.dtype) -> None:
        self.row, self.layers = row, layers_of(model, dtype)
        cache = MethodCache(Recording(), self.layers)
        with methods_attention(model):
            model.get_decoder()(row[None], past_key_values=cache)
        self.tokens = [layer.stores[0].tokens for layer in cache.layers]

    @torch.inference_mode()
    def nbytes(self, method: Method) -> int:
        """Bytes that ``method`` holds of the prompt. Raises ValueError where its knobs do not fit the model."""
        stores = []
        for layer, tokens in zip(self.layers, self.tokens, strict=True):
            if method.source_layer(layer.index) == layer.index:
                stores.append(method.store(layer))
                stores[-1].append(tokens)
        return held_bytes(stores)

    def dense_nbytes(self) -> int:
        return self.nbytes(Dense())


@torch.inference_mode()
def compressed(method: Method, prompts: Sequence[Prompt], layers: list[Layer], model: PreTrainedModel) -> MethodCache:
    """The cache of a batch of prompts of one length, as ``model`` leaves it behind.

    Only where layers share a store does the model run again: there a prompt's attention depends on the method.
    """
    cache = MethodCache(method, layers)
    if any(method.source_layer(layer.index) != layer.index for layer in layers):
        model.get_decoder()(torch.stack([prompt.row for prompt in prompts]), past_key_values=cache)
        return cache
    for own in cache.layers:
        tokens = [prompt.tokens[own.layer.index] for prompt in prompts]
        own.update(*(torch.stack([getattr(each, part) for each in tokens]) for part in ("keys", "values")))
        for store, each in zip(own.stores, tokens, strict=True):
            store.append(each)
    return cache


@dataclass(frozen=True)
class Arm:
    """A model, the attention that it needs, and the cache that it has of a batch of prompts of one length."""

    model: PreTrainedModel
    attention: Callable[[], AbstractContextManager]
    compress: Callable[[Sequence[Prompt]], Cache]


def method_arm(model: PreTrainedModel, method: Method, dtype: torch.dtype) -> Arm:
    """Numbers in full precision are stored as ``dtype``."""
    layers = layers_of(model, dtype)
    return Arm(model, lambda: methods_attention(model), lambda prompts: compressed(method, prompts, layers, model))


def cache_arm(model: PreTrainedModel, make_cache: Callable[[], Cache]) -> Arm:
    """A model with its own attention and a cache that it fills itself."""

    def compress(prompts: Sequence[Prompt]) -> Cache:
        cache = make_cache()
        model(torch.stack([prompt.row for prompt in prompts]), past_key_values=cache, logits_to_keep=1)
        return cache

    return Arm(model, nullcontext, compress)
