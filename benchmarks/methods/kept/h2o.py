"""H2O (Zhang et al. 2023, arXiv 2306.14048): heavy hitters, by the attention that all queries pay, and the newest."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Tokens
from benchmarks.methods.kept.pruning import WindowPruning, received_attention


@dataclass(frozen=True, kw_only=True)
class H2O(WindowPruning):
    """As QPruningKV runs it: attention summed over the queries of the prompt. Every query is causal here; there, only
    those of the window are.
    """

    name = "h2o"

    def scores(self, tokens: Tokens, layer: Layer) -> torch.Tensor:
        length = tokens.keys.shape[1]
        return received_attention(tokens, length, layer.scale)[:, : length - self.window_size]
