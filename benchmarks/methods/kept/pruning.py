"""Methods that keep some tokens of the prompt and drop the others, per KV head. Tokens after the prompt all stay.

Scores of a KV head are the mean over its query heads, as in kvpress; nothing is repeated for them.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect

POOLING = {"maxpool": max_pool1d, "avgpool": avg_pool1d}


@dataclass(frozen=True, kw_only=True)
class Pruning(Method):
    """A prompt of more than ``max_capacity_prompts`` tokens is cut to exactly as many, the newest ``window`` among
    them.
    """

    max_capacity_prompts: int = 512

    def __post_init__(self) -> None:
        fits = 0 < self.window < self.max_capacity_prompts
        expect(fits, f"the window is {self.window}, expected 1 to below max_capacity_prompts")

    @property
    @abstractmethod
    def window(self) -> int:
        """The newest tokens of the prompt, which always stay."""

    @abstractmethod
    def scores(self, tokens: Tokens, layer: Layer) -> torch.Tensor:
        """``[kv_heads, tokens - window]``: how much the tokens before the window are worth keeping."""

    def capacity(self, tokens: int, layer: Layer) -> int:
        """Tokens that this layer keeps of a prompt of ``tokens``, more than ``max_capacity_prompts``."""
        return self.max_capacity_prompts

    def kept(self, tokens: Tokens, layer: Layer) -> Tokens:
        """The tokens that stay, in their order."""
        length = tokens.keys.shape[1]
        if length <= self.max_capacity_prompts:
            return tokens
        old = self.capacity(length, layer) - self.window
        best = self.scores(tokens, layer).topk(old, -1).indices.sort(-1).values
        window = torch.arange(length - self.window, length, device=best.device).expand(best.shape[0], -1)
        return chosen(tokens, torch.cat([best, window], 1))

    def store(self, layer: Layer) -> Store:
        return PrunedStore(self, layer, DenseStore(layer))


@dataclass(frozen=True, kw_only=True)
class WindowPruning(Pruning):
    """With a window of a fixed size."""

    window_size: int = 8

    @property
    def window(self) -> int:
        return self.window_size


def chosen(tokens: Tokens, indices: torch.Tensor) -> Tokens:
    """The tokens at ``indices [kv_heads, kept]`` of each KV head. No queries are left."""
    wide = indices[..., None].expand(-1, -1, tokens.keys.shape[2])
    keys, values = tokens.keys.gather(1, wide), tokens.values.gather(1, wide)
    return Tokens(keys, values, tokens.queries[:, :0], tokens.positions.gather(1, indices))


class Keeping(Protocol):
    """What chooses among the tokens of a prompt."""

    def kept(self, tokens: Tokens, layer: Layer) -> Tokens: ...


class PrunedStore(Store):
    """Cuts the prompt, and leaves all the rest to ``inner``."""

    def __init__(self, method: Keeping, layer: Layer, inner: Store) -> None:
        self.method, self.layer, self.inner = method, layer, inner
        self.is_prompt = True

    def append(self, tokens: Tokens) -> None:
        self.inner.append(self.method.kept(tokens, self.layer) if self.is_prompt else tokens)
        self.is_prompt = False

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.read()


def received_attention(tokens: Tokens, last: int, scale: float, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Probability that each token gets from the newest ``last`` queries, causally: summed over those queries, each
    times its weight of ``weights [last]``, and averaged over the query heads of a KV head. ``[kv_heads, tokens]``.
    """
    kv_heads, length, _ = tokens.keys.shape
    queries = tokens.queries[:, length - last :]
    total = queries.new_zeros(kv_heads, length)
    for start in range(0, last, 256):  # rows at a time: a whole matrix of a long prompt would not fit
        paid = paid_attention(queries[:, start : start + 256], tokens.keys, length - last + start, scale)
        if weights is not None:
            paid = paid * weights[start : start + 256, None].to(paid)
        total += paid.sum(1)
    return total


def paid_attention(queries: torch.Tensor, keys: torch.Tensor, first: int, scale: float) -> torch.Tensor:
    """Probabilities ``[kv_heads, n, tokens]`` that ``queries [num_heads, n, head_dim]`` of the tokens from place
    ``first`` on pay to ``keys [kv_heads, tokens, head_dim]``, causally, averaged over the query heads of a KV head.
    """
    rows = queries.unflatten(0, (keys.shape[0], -1))
    scores = torch.einsum("hqnd,htd->hqnt", rows, keys) * scale
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(first)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).mean(1)


def pooled(scores: torch.Tensor, kernel_size: int, pooling: str) -> torch.Tensor:
    """``scores [kv_heads, tokens]``, each with the best or the mean of its neighbours."""
    return POOLING[pooling](scores, kernel_size, stride=1, padding=kernel_size // 2)
