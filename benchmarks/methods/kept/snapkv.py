"""SnapKV (Li et al. 2024, arXiv 2404.14469): tokens that the newest queries attend to, with their neighbours."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Tokens, expect
from benchmarks.methods.kept.pruning import POOLING, WindowPruning, pooled, received_attention


@dataclass(frozen=True, kw_only=True)
class SnapKV(WindowPruning):
    """The window observes: its queries' attention, pooled over ``kernel_size`` neighbours, ranks the tokens before."""

    name = "snapkv"

    kernel_size: int = 7
    pooling: str = "maxpool"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.pooling in POOLING, f"pooling is {self.pooling!r}, expected one of {list(POOLING)}")
        expect(self.kernel_size % 2 == 1, f"kernel_size is {self.kernel_size}, expected an odd number")

    def scores(self, tokens: Tokens, layer: Layer) -> torch.Tensor:
        observed = received_attention(tokens, self.window_size, layer.scale)
        return pooled(observed[:, : -self.window_size], self.kernel_size, self.pooling)
