"""A probe says how much worse one layer's attention gets with other keys or values, on calibration tokens.

The error of a token is the change of what attention adds to the residual stream, over what the stream holds:
``|O (z - z')|^2 / |h|^2``. To first order the errors of layers, of K and of V add up, so that one number ranks all ways
of storing a cache (``budget.py``). ``O`` is replaced by a random projection of its output onto ``SKETCH`` numbers,
which keeps squared lengths on average (Johnson and Lindenstrauss) and costs little; all candidates meet the same one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

SKETCH = 64


def sketch(output: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """``R O`` in float32 for ``O [hidden, columns]``: ``[SKETCH, columns]``, or O itself where it has no more rows."""
    if len(output) <= SKETCH:
        return output.float()
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(SKETCH, len(output), generator=generator) / SKETCH**0.5
    return projection.to(output.device) @ output.float()


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """RoPE of ``x [..., tokens, head_dim]`` by cosines and sines ``[tokens, head_dim]``, pairs half a head apart."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotary
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Probes(Protocol):
    """Probes of a layer and the ``inputs [tokens, hidden]`` that they come from, gone through as often as needed."""

    def __iter__(self) -> Iterator[tuple["AttentionProbe", torch.Tensor]]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class AttentionProbe:
    """One layer of the dense model on consecutive tokens of text, float32.

    Keys are those before rotation; ``output`` is ``O [sketch, num_heads * head_dim]``. ``key_gain`` is what a small
    error of projected keys is multiplied by in keys, where a norm lies between them (its part along the key, which the
    norm removes, is not left out); None where there is none.
    """

    queries: torch.Tensor  # [num_heads, tokens, head_dim], not rotated
    keys: torch.Tensor  # [num_kv_heads, tokens, head_dim], not rotated
    values: torch.Tensor  # [num_kv_heads, tokens, head_dim]
    output: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [tokens, head_dim] each
    visible: torch.Tensor  # bool [tokens, tokens]: causal, and within the sliding window
    energy: torch.Tensor  # [tokens]: squared length of the residual stream
    key_gain: torch.Tensor | None = None  # [num_kv_heads, tokens, head_dim]

    def key_error(self, keys: torch.Tensor) -> float:
        """Mean error over tokens with ``keys [num_kv_heads, tokens, head_dim]`` in place of the exact ones."""
        return self.rotated_key_error(rotate(keys, self.rotary))

    def rotated_key_error(self, rotated: torch.Tensor) -> float:
        """As :meth:`key_error`, for keys that are rotated already."""
        return self._mean_error(self._added(self._probabilities(rotated), self.values) - self._exact)

    def value_error(self, values: torch.Tensor) -> float:
        """Mean error over tokens with ``values [num_kv_heads, tokens, head_dim]`` in place of the exact ones."""
        return self._mean_error(self._added(self.probabilities, values - self.values))

    @cached_property
    def _scaled_queries(self) -> torch.Tensor:
        """``[num_kv_heads, queries_per_kv, tokens, head_dim]``, rotated."""
        rotated = rotate(self.queries, self.rotary) * self.queries.shape[-1] ** -0.5
        return rotated.unflatten(0, (len(self.keys), -1))

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """What the softmax of the dense layer gives, ``[num_kv_heads, queries_per_kv, tokens, tokens]``."""
        return self._probabilities(rotate(self.keys, self.rotary))

    @cached_property
    def _exact(self) -> torch.Tensor:
        return self._added(self.probabilities, self.values)

    def _probabilities(self, rotated: torch.Tensor) -> torch.Tensor:
        """What the softmax gives, ``[num_kv_heads, queries_per_kv, tokens, tokens]``."""
        scores = self._scaled_queries @ rotated.unsqueeze(1).mT
        return scores.masked_fill_(~self.visible, -torch.inf).softmax(-1)

    def _added(self, probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What attention adds to the stream, ``[tokens, sketch]``."""
        heads = (probabilities @ values.unsqueeze(1)).flatten(0, 1)
        return heads.transpose(0, 1).flatten(1) @ self.output.T

    def _mean_error(self, difference: torch.Tensor) -> float:
        return (difference.square().sum(-1) / self.energy).mean().item()
