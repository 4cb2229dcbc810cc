"""The cache as it is without a method, in the checkpoint's dtype."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens


class DenseStore(Store):
    """All keys and values. Also the full-precision part of other stores."""

    def __init__(self, layer: Layer) -> None:
        self.keys, self.values = layer.empty(), layer.empty()

    def append(self, tokens: Tokens) -> None:
        self.keys = torch.cat([self.keys.to(tokens.keys.device), tokens.keys.to(self.keys.dtype)], 1)
        self.values = torch.cat([self.values.to(tokens.values.device), tokens.values.to(self.values.dtype)], 1)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """No knobs."""

    name = "dense"

    def store(self, layer: Layer) -> Store:
        return DenseStore(layer)
