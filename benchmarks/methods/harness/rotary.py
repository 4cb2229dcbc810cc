"""Rotation of keys and back, for methods that store them unrotated."""

import torch

from benchmarks.methods.harness.interface import Layer, expect


def _half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rotate(keys: torch.Tensor, positions: torch.Tensor, layer: Layer) -> torch.Tensor:
    """``keys [..., tokens, head_dim]`` at ``positions [tokens]``, float32."""
    cos, sin = _tables(positions, layer)
    return keys.float() * cos + _half(keys.float()) * sin


def unrotate(keys: torch.Tensor, positions: torch.Tensor, layer: Layer) -> torch.Tensor:
    """What ``rotate`` took; also where the rotation scales, as YaRN's does."""
    cos, sin = _tables(positions, layer)
    return (keys.float() * cos - _half(keys.float()) * sin) / (cos.square() + sin.square())


def _tables(positions: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = (table.float() for table in layer.rotation(positions))
    expect(
        cos.shape[-1] == layer.head_dim, f"rotations of {cos.shape[-1]} of {layer.head_dim} numbers are not supported"
    )
    return cos, sin
