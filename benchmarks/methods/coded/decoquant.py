"""DecoQuant (Liu et al. 2024, arXiv 2405.12591): a large factor of even range in few bits, times a small one kept as it
is, which takes the outliers.
"""

from dataclasses import dataclass

import torch

from benchmarks.methods.coded.codes import BITS, Codes, per_token, read_per_token
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect


@dataclass(frozen=True, kw_only=True)
class DecoQuant(Method):
    """Written from the paper's description; no code of it was at hand, so the names of the knobs are ours.

    Numbers of a token are cut into runs of ``small_size``. The singular value decomposition of all runs of a prompt is
    ``large x small``, with ``small [small_size, small_size]``; of keys and of values one each. Later tokens are written
    in the same ``small``. Codes are per token, in groups of ``group_size``.
    """

    name = "decoquant"

    bits: int = 4
    group_size: int = 32
    small_size: int = 8

    def __post_init__(self) -> None:
        expect(self.bits in BITS, f"bits is {self.bits}, expected one of {BITS}")
        expect(self.small_size > 0 and self.group_size > 0, "small_size and group_size have to be positive")

    def store(self, layer: Layer) -> Store:
        width = layer.num_kv_heads * layer.head_dim
        expect(width % self.group_size == 0, f"{width} numbers of a token are no groups of {self.group_size}")
        expect(layer.head_dim % self.small_size == 0, f"{layer.head_dim} numbers are no runs of {self.small_size}")
        return DecoQuantStore(self, layer)


@dataclass(frozen=True)
class Factors:
    """Keys or values of all tokens."""

    large: Codes  # of [kv_heads, tokens, head_dim], per token
    small: torch.Tensor  # the checkpoint's dtype [small_size, small_size]

    def read(self, kv_heads: int) -> torch.Tensor:
        """float32 ``[kv_heads, tokens, head_dim]``."""
        return multiplied(read_per_token(self.large, kv_heads), self.small.float())


def multiplied(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Every run of ``x [..., head_dim]`` times ``matrix``."""
    return (x.unflatten(-1, (-1, matrix.shape[0])) @ matrix).flatten(-2)


def small_factor(x: torch.Tensor, size: int) -> torch.Tensor:
    """Singular values times right vectors of all runs of ``x``, such that numbers of the other factor are about 1."""
    runs = x.double().reshape(-1, size)
    values, vectors = torch.linalg.eigh(runs.mT @ runs / len(runs))
    root = values.clamp(min=0).sqrt()
    return (root.clamp(min=float(root.max()) * 1e-4 + 1e-6)[:, None] * vectors.mT).float()


class DecoQuantStore(Store):
    """Both factors. The small ones are those of the prompt."""

    def __init__(self, method: DecoQuant, layer: Layer) -> None:
        self.method, self.layer = method, layer
        self.factors: tuple[Factors, Factors] | None = None

    def append(self, tokens: Tokens) -> None:
        if not tokens.keys.shape[1]:
            return
        keys, values = self.factors or (None, None)
        self.factors = self._followed_by(keys, tokens.keys.float()), self._followed_by(values, tokens.values.float())

    def _followed_by(self, old: Factors | None, x: torch.Tensor) -> Factors:
        small = old.small if old else small_factor(x, self.method.small_size).to(self.layer.dtype)
        large = per_token(multiplied(x, small.float().inverse()), self.method.bits, self.method.group_size)
        return Factors(old.large.followed_by(large, 0) if old else large, small)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.factors is None:
            return self.layer.empty(), self.layer.empty()
        keys, values = (part.read(self.layer.num_kv_heads) for part in self.factors)
        return keys, values
