"""A cache for ``model(..., past_key_values=cache)`` and ``generate`` that holds codec slots in the place of numbers."""

from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from palu_vllm.format.codec.file import load_codec
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.codec.reference import decode_tokens, encode_tokens


class CodedLayer(DynamicLayer):
    """What transformers' own layer keeps as ``keys`` are slots, uint8 ``[batch, groups, tokens, slot.bytes]``; its
    ``values`` are as many rows of no bytes.

    ``padding [batch]`` says how many tokens stand before each text, None that none do.
    """

    def __init__(self, codec: LayerCodec, padding: torch.Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codec, self.padding = codec, padding

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.codec = self.codec.to(key_states.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores ``key_states [batch, kv_heads, tokens, head_dim]``, after norm and RoPE, and ``value_states``; returns
        those of all tokens as they are read. Raises ValueError for heads that are not the codec's.
        """
        found, expected = (key_states.shape[1], key_states.shape[3]), tuple(self.codec.key.sink.shape)
        if found != expected:
            raise ValueError(
                f"the model has {found[0]} KV heads of {found[1]}, the codec is for {expected[0]} of {expected[1]}; "
                "calibrate one for this model."
            )
        dtype, tokens = key_states.dtype, key_states.shape[2]
        positions = self._positions(self.get_seq_length(), tokens, key_states)
        slots = self._encoded(key_states, value_states, positions)
        kept, _ = super().update(slots, slots[..., :0], *args, **kwargs)
        first = self.get_seq_length() - kept.shape[2]
        keys, values = self._decoded(kept, self._positions(first, kept.shape[2], key_states))
        return keys.to(dtype), values.to(dtype)

    def _positions(self, first: int, count: int, like: torch.Tensor) -> torch.Tensor:
        """The tokens' numbers in their texts, 0 for padding, ``[batch * count]``."""
        places = torch.arange(first, first + count, device=like.device).expand(len(like), -1)
        if self.padding is not None:
            places = (places - self.padding.to(like.device)[:, None]).clamp(min=0)
        return places.flatten()

    def _encoded(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        key, value = (each.transpose(1, 2).flatten(0, 1) for each in (keys, values))
        slots = encode_tokens(self.codec, key, value, positions)
        return slots.unflatten(0, (len(keys), -1)).transpose(1, 2)

    def _decoded(self, slots: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        read = decode_tokens(self.codec, slots.transpose(1, 2).flatten(0, 1), positions)
        keys, values = (each.unflatten(0, (len(slots), -1)).transpose(1, 2) for each in read)
        return keys, values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.padding is not None:
            self.padding = self.padding.repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.padding is not None:
            self.padding = self.padding[indices]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.padding is not None:
            self.padding = self.padding[beam_idx.to(self.padding.device)]


class CodedSlidingLayer(CodedLayer, DynamicSlidingWindowLayer):
    """The same with the last tokens of a window alone."""


class PaluCache(Cache):
    """A cache of coded keys and values for any causal model of transformers, made by :meth:`from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, config: PreTrainedConfig | None = None, attention_mask: torch.Tensor | None = None
    ) -> Self:
        """An empty cache with the codec in ``directory``.

        With the model's ``config`` sliding layers keep their window alone. ``attention_mask [batch, tokens]`` of a
        prompt with padding on its left tells where texts begin, as ``generate`` does not: without it they lose more.
        Raises CheckpointError for a directory without a whole codec.
        """
        codec = load_codec(Path(directory))
        padding = None if attention_mask is None else attention_mask.long().argmax(-1)
        dense = list(DynamicCache(config=config).layers) if config is not None else []
        count = max(len(dense), int(codec.model.get("num_layers", 0)), max(codec.layers) + 1)
        dense += [DynamicLayer() for _ in range(count - len(dense))]
        return cls(layers=[_coded(layer, codec.layers.get(number), padding) for number, layer in enumerate(dense)])


def _coded(dense: Any, codec: LayerCodec | None, padding: torch.Tensor | None) -> CacheLayerMixin:
    """The coded layer in the place of a dense one; the dense one where there is no codec for it."""
    if codec is None:
        return dense
    if isinstance(dense, DynamicSlidingWindowLayer):
        return CodedSlidingLayer(codec, padding, sliding_window=dense.sliding_window)
    return CodedLayer(codec, padding)
