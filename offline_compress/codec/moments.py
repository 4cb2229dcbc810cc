"""Moments of one layer's keys and values, and of how much the model's answers depend on them.

With ``g`` the gradient of ``-log p`` of a token that the model itself would say, an error ``d`` of a key costs
``(g . d)^2 / 2`` of Kullback-Leibler divergence to second order, summed over tokens (Fisher information). So
``E[g g^T]`` is the metric in which errors of keys and of values, of every layer, are one quantity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from palu_vllm.format.kv import KV

CLIPPED = 0.99


@dataclass
class SideMoments:
    """Sums over tokens, float64; groups of KV heads side by side are ``width`` numbers."""

    total: torch.Tensor  # [groups, width]
    second: torch.Tensor  # [groups, width, width]: of the numbers
    metric: torch.Tensor  # [groups, width, width]: of the gradients, of ``measured`` tokens
    first: torch.Tensor  # [groups, width]: over first tokens, each alone
    firsts: int = 0
    measured: int = 0

    @classmethod
    def zeros(cls, groups: int, width: int) -> "SideMoments":
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return cls(zeros(groups, width), zeros(groups, width, width), zeros(groups, width, width), zeros(groups, width))

    def add(self, rows: torch.Tensor) -> None:
        """``rows [tokens, groups, width]``."""
        rows = rows.double()
        self.total += rows.sum(0).cpu()
        self.second += torch.einsum("tgi,tgj->gij", rows, rows).cpu()

    def add_gradients(self, rows: torch.Tensor) -> None:
        """Of one sample, ``rows [tokens, groups, width]``: the longest gradients count as long as those of the
        ``CLIPPED`` quantile, for a divergence does not grow with the square where it is large.
        """
        rows = rows.double()
        energy = rows.square().sum((1, 2))
        cap = energy.quantile(CLIPPED)
        rows = rows * (cap / energy.clamp(min=torch.finfo(energy.dtype).tiny)).clamp(max=1).sqrt()[:, None, None]
        self.metric += torch.einsum("tgi,tgj->gij", rows, rows).cpu()
        self.measured += len(rows)

    def add_first(self, rows: torch.Tensor) -> None:
        """``rows [texts, groups, width]`` of texts of one token."""
        self.first += rows.double().sum(0).cpu()
        self.firsts += len(rows)


@dataclass
class LayerMoments:
    """What one attention layer showed. ``along[name] [groups, width, 2 F]`` are sums of keys times the features of
    their positions, for every set of frequencies that the model has; ``features[name] [2 F, 2 F]`` those of products of
    features, ``feature_totals[name] [2 F]`` those of features.
    """

    kv_heads: int
    head_dim: int
    value_dim: int
    num_heads: int
    sides: KV[SideMoments]
    tokens: int = 0
    along: dict[str, torch.Tensor] = field(default_factory=dict)
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    feature_totals: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, key: torch.Tensor, value: torch.Tensor, features: Mapping[str, torch.Tensor]) -> None:
        """``key [tokens, groups, width]``, ``value`` likewise, ``features[name] [tokens, 2 F]``."""
        self.tokens += len(key)
        self.sides.key.add(key)
        self.sides.value.add(value)
        for name, each in features.items():
            rows = each.double()
            along = torch.einsum("tgi,tf->gif", key.double(), rows.to(key.device)).cpu()
            self.along[name] = self.along.get(name, 0) + along
            self.features[name] = self.features.get(name, 0) + rows.T @ rows
            self.feature_totals[name] = self.feature_totals.get(name, 0) + rows.sum(0)


def default_group_size(kv_heads: int, num_heads: int, widest: int) -> int:
    """The most neighbouring KV heads with at most 16 query heads and 512 numbers, a divisor of their number."""
    fitting = (
        size
        for size in range(kv_heads, 0, -1)
        if kv_heads % size == 0 and size * (num_heads // kv_heads) <= 16 and size * widest <= 512
    )
    return next(fitting, 1)
