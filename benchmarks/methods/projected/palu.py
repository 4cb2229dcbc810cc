"""Palu's own cache in the harness: a checkpoint of ``palu-compress`` and the latents that its model caches."""

import torch
from transformers import DynamicCache

from benchmarks.methods.harness.interface import held_bytes


class PaluCache(DynamicCache):
    """Latents as they would be stored: packed ones are bytes already, others are kept in ``dtype``, the checkpoint's.

    For ``palu_vllm.huggingface`` models with their own attention. Rows of a batch have equal lengths.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[batch, groups, tokens, rank or bytes]``; gives back all tokens in the dtype that came."""
        stored = [x.to(self.dtype) if x.is_floating_point() else x for x in (key_states, value_states)]
        keys, values = super().update(*stored, *args, **kwargs)
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def nbytes(self) -> int:
        """Bytes of all requests and layers."""
        return held_bytes([(layer.keys, layer.values) for layer in self.layers])
