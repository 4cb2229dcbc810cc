"""What methods learn from: the keys and values of a model on text, and what the loss says of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from benchmarks.methods.harness.attention import layers_of, methods_attention
from benchmarks.methods.harness.cache import MethodCache, Step
from benchmarks.methods.harness.dense import Dense

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def keys_and_values(model: PreTrainedModel, rows: torch.Tensor) -> Pairs:
    """Per layer rotated keys and values, float32 ``[rows, num_kv_heads, tokens, head_dim]``.

    ``rows`` int64 ``[rows, tokens]``.
    """
    cache = MethodCache(Dense(), layers_of(model, torch.float32))
    with methods_attention(model):
        model.get_decoder()(rows, past_key_values=cache)
    stores = [[store.read() for store in layer.stores] for layer in cache.layers]
    return [(torch.stack([k for k, _ in layer]), torch.stack([v for _, v in layer])) for layer in stores]


@contextmanager
def differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Gradients are taken inside, but none of the model's weights, whatever holds outside."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)


class WatchedCache(MethodCache):
    """Keys and values of one step, such that a gradient can be taken with respect to them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(Dense(), layers_of(model, torch.float32))
        self.watched: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[Step, torch.Tensor]:
        for states in (key_states, value_states):
            self.watched.append(states if states.requires_grad else states.requires_grad_())
        return super().update(key_states, value_states, *args, **kwargs)


def gradients(model: PreTrainedModel, rows: torch.Tensor) -> Pairs:
    """Of each row's mean loss of its next tokens, with respect to what ``keys_and_values`` gives, in its shapes."""
    found = []
    with differentiable(model), methods_attention(model):
        for row in rows:
            cache = WatchedCache(model)
            loss = model(row[None], labels=row[None], past_key_values=cache).loss
            found.append([gradient[0].float() for gradient in torch.autograd.grad(loss, cache.watched)])
    stacked = [torch.stack(each) for each in zip(*found, strict=True)]
    return list(zip(stacked[::2], stacked[1::2], strict=True))
