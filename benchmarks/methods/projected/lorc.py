"""LoRC (Zhang et al. 2024, arXiv 2410.03111): truncated SVD of the projections, with ranks that follow how far the
error of a layer is amplified behind it.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch

from benchmarks.methods.coded.low_rank import rank_of
from benchmarks.methods.harness.interface import Layer, Method, Store, expect
from benchmarks.methods.projected.projection import ProjectedStore, Subspaces


@dataclass(frozen=True, kw_only=True)
class LoRC(Method):
    """Ranks of all heads of a layer together, from ``d_max`` where the cumulative condition number is highest down to
    ``d_min`` where it is lowest; fractions of the full rank where they are below 1.

    Keys are projected before their rotation. A latent is what the truncated right factor makes of the hidden state.
    """

    name = "lorc"

    d_max: float = 0.75
    d_min: float = 0.25
    factors: tuple[Subspaces, ...] = field(default=(), repr=False, compare=False)  # per layer, truncated

    def __post_init__(self) -> None:
        expect(0 < self.d_min <= self.d_max, f"d_min is {self.d_min}, expected above 0 and at most d_max")

    def studied(self, model: torch.nn.Module, rows: torch.Tensor) -> list[tuple["Factored", "Factored"]]:
        """From the weights alone. Raises ValueError for models that normalise keys or join their projections."""
        attentions = [layer.self_attn for layer in model.get_decoder().layers]
        plain = all(hasattr(each, "k_proj") and not hasattr(each, "k_norm") for each in attentions)
        expect(plain, "lorc needs k_proj and v_proj, and keys that are not normalised")
        return [(Factored.of(each.k_proj), Factored.of(each.v_proj)) for each in attentions]

    def taught(self, found: list[tuple["Factored", "Factored"]]) -> Self:
        ranks = progressive_ranks([(k.singular, v.singular) for k, v in found], self.d_max, self.d_min)
        factors = [
            Subspaces(k.left[None, :, :rank], v.left[None, :, :rank], k.bias, v.bias, unrotated=True)
            for (k, v), rank in zip(found, ranks, strict=True)
        ]
        return replace(self, factors=tuple(factors))

    def store(self, layer: Layer) -> Store:
        expect(bool(self.factors), "lorc has to be calibrated first")
        return ProjectedStore(self.factors[layer.index], layer)


@dataclass(frozen=True)
class Factored:
    """What a projection's weight is decomposed into."""

    left: torch.Tensor  # [width, full rank]
    singular: torch.Tensor  # [full rank], largest first
    bias: torch.Tensor | None  # [1, 1, width]

    @classmethod
    def of(cls, linear: torch.nn.Linear) -> "Factored":
        left, singular, _ = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        return cls(left, singular, None if linear.bias is None else linear.bias.detach().float()[None, None])


def progressive_ranks(singular: list[tuple[torch.Tensor, torch.Tensor]], d_max: float, d_min: float) -> list[int]:
    """Rank of each layer, from the singular values of its key and value projections, largest first.

    Logarithms of the condition numbers are summed from a layer to the last; ranks are linear in the sums.
    """
    logs = torch.tensor([sum((s[0] / s[-1]).log().item() for s in pair) for pair in singular])
    behind = logs.flip(0).cumsum(0).flip(0)
    full = len(singular[0][0])
    lowest, highest = rank_of(d_min, full, full), rank_of(d_max, full, full)
    share = (behind - behind.min()) / (behind.max() - behind.min()).clamp(min=1e-9)
    return [round(lowest + (highest - lowest) * each) for each in share.tolist()]
