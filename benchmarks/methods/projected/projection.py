"""Stores of keys and values within a subspace that is the same for all requests, as coordinates."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Store, Tokens
from benchmarks.methods.harness.rotary import rotate, unrotate


@dataclass(frozen=True)
class Subspaces:
    """Orthonormal columns, and what is subtracted before and added after. Parts of a head or all heads together."""

    keys: torch.Tensor  # [groups, num_kv_heads / groups * head_dim, rank]
    values: torch.Tensor  # [groups, num_kv_heads / groups * head_dim, rank]
    key_offset: torch.Tensor | None = None  # [groups, 1, width]
    value_offset: torch.Tensor | None = None
    unrotated: bool = False  # whether keys are projected before their rotation


def project(x: torch.Tensor, basis: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """``x [kv_heads, tokens, head_dim]`` to coordinates ``[groups, tokens, rank]``."""
    groups = basis.shape[0]
    wide = x.float().unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    return (wide if offset is None else wide - offset) @ basis


def rebuild(coordinates: torch.Tensor, basis: torch.Tensor, offset: torch.Tensor | None, heads: int) -> torch.Tensor:
    """Coordinates ``[groups, tokens, rank]`` to float32 ``[kv_heads, tokens, head_dim]``."""
    wide = coordinates.float() @ basis.mT
    wide = wide if offset is None else wide + offset
    return wide.unflatten(2, (heads // basis.shape[0], -1)).transpose(1, 2).flatten(0, 1)


class ProjectedStore(Store):
    """Coordinates in the checkpoint's dtype. Positions are counted on from the first, so they take no memory."""

    def __init__(self, subspaces: Subspaces, layer: Layer) -> None:
        self.constants = (subspaces,)
        self.layer = layer
        self.first_position = 0
        self.keys = torch.empty(subspaces.keys.shape[0], 0, subspaces.keys.shape[2], dtype=layer.dtype)
        self.values = torch.empty(subspaces.values.shape[0], 0, subspaces.values.shape[2], dtype=layer.dtype)

    def append(self, tokens: Tokens) -> None:
        spaces, keys = self.constants[0], tokens.keys
        if spaces.unrotated:
            if not self.keys.shape[1] and keys.shape[1]:
                self.first_position = int(tokens.positions[0, 0])
            keys = unrotate(keys, tokens.positions[0], self.layer)
        new_keys = project(keys, spaces.keys, spaces.key_offset).to(self.keys)
        new_values = project(tokens.values, spaces.values, spaces.value_offset).to(self.values)
        self.keys, self.values = torch.cat([self.keys, new_keys], 1), torch.cat([self.values, new_values], 1)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        spaces, heads = self.constants[0], self.layer.num_kv_heads
        keys = rebuild(self.keys, spaces.keys, spaces.key_offset, heads)
        if spaces.unrotated:
            positions = torch.arange(keys.shape[1], device=keys.device) + self.first_position
            keys = rotate(keys, positions, self.layer)
        return keys, rebuild(self.values, spaces.values, spaces.value_offset, heads)
