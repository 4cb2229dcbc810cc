"""The oracle of sinks and a window: StreamingLLM as published (arXiv 2309.17453), a cache of transformers."""

from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedModel


class StreamingCache(DynamicCache):
    """Holds ``start`` sinks and the ``recent`` newest tokens of one request; a prompt attends to all of itself.

    With ``shift`` the sinks stand right before the window, wherever it is: their keys are rotated when they are read.
    """

    def __init__(self, model: PreTrainedModel, start: int, recent: int, shift: bool) -> None:
        super().__init__()
        self.rotary, self.start, self.recent, self.shift = model.get_decoder().rotary_emb, start, recent, shift
        self.seen: dict[int, int] = {}

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        held = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if held is None or not held.is_initialized:
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        else:
            keys = torch.cat([self._moved(held.keys, layer_idx), key_states], 2)
            values = torch.cat([held.values, value_states], 2)
            # sinks stay as they came, so that moving them never moves what was moved
            held.keys, held.values = torch.cat([held.keys, key_states], 2), values
        self.seen[layer_idx] = self.seen.get(layer_idx, 0) + key_states.shape[2]
        self._forget(layer_idx)
        return keys, values

    def _forget(self, layer_idx: int) -> None:
        layer = self.layers[layer_idx]
        if layer.keys.shape[2] > self.start + self.recent:
            layer.keys, layer.values = (
                torch.cat([x[:, :, : self.start], x[:, :, -self.recent :]], 2) for x in (layer.keys, layer.values)
            )

    def _moved(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Held keys ``[1, heads, tokens, head_dim]`` with sinks right before the window."""
        distance = self.seen[layer_idx] - keys.shape[2]
        if not self.shift or not distance:
            return keys
        cos, sin = self.rotary(keys, torch.tensor([[distance]]))
        sinks = keys[:, :, : self.start]
        first, second = sinks.chunk(2, -1)
        turned = sinks * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
        return torch.cat([turned, keys[:, :, self.start :]], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen: positions go on."""
        return self.seen.get(layer_idx, 0)


@torch.inference_mode()
def continued(model: PreTrainedModel, make_cache: Callable[[], DynamicCache], ids: list[int], count: int) -> list[int]:
    """Greedy tokens behind ``ids``."""
    step = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "past_key_values": make_cache()}
    return model.generate(torch.tensor([ids]), **step)[0, len(ids) :].tolist()
