"""H2O as published: heavy hitters are told apart anew at every step, and the cache never grows (Zhang et al. 2023,
arXiv 2306.14048).
"""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect
from benchmarks.methods.kept.pruning import paid_attention


@dataclass(frozen=True, kw_only=True)
class RollingH2O(Method):
    """Of each KV head the newest ``recent_size`` tokens, and of those before them the ``hh_size`` that all queries so
    far, while they were there, have paid most attention to. Tokens keep their positions.
    """

    name = "h2o_rolling"

    hh_size: int = 256
    recent_size: int = 256

    def __post_init__(self) -> None:
        expect(self.hh_size > 0 and self.recent_size > 0, "hh_size and recent_size have to be positive")

    def store(self, layer: Layer) -> Store:
        return HeavyHitters(self, layer)


class HeavyHitters(Store):
    """Keys, values, and a float32 sum of attention per token and KV head, which counts."""

    def __init__(self, method: RollingH2O, layer: Layer) -> None:
        self.method, self.layer = method, layer
        self.keys, self.values = layer.empty(), layer.empty()
        self.received = torch.empty(layer.num_kv_heads, 0)

    def append(self, tokens: Tokens) -> None:
        before, new = self.keys.shape[1], tokens.keys.shape[1]
        seen = torch.cat([self.keys.to(tokens.keys), tokens.keys], 1)
        received = torch.cat([self.received, self.received.new_zeros(len(seen), new)], 1)
        for start in range(0, new, 256):  # rows at a time: a whole matrix of a long prompt would not fit
            rows = tokens.queries[:, start : start + 256]
            received += paid_attention(rows, seen, before + start, self.layer.scale).sum(1).to(received)
        self.keys = torch.cat([self.keys, tokens.keys.to(self.keys)], 1)
        self.values = torch.cat([self.values, tokens.values.to(self.values)], 1)
        self.received = received
        self._evict()

    def _evict(self) -> None:
        length, recent = self.keys.shape[1], self.method.recent_size
        if length <= self.method.hh_size + recent:
            return
        best = self.received[:, : length - recent].topk(self.method.hh_size, -1).indices.sort(-1).values
        newest = torch.arange(length - recent, length, device=best.device).expand(len(best), -1)
        kept = torch.cat([best, newest], 1)
        wide = kept[..., None].expand(-1, -1, self.layer.head_dim)
        self.keys, self.values = self.keys.gather(1, wide), self.values.gather(1, wide)
        self.received = self.received.gather(1, kept)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values
