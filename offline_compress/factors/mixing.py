"""The rotations of ``palu_vllm/format/mixing.py``, folded into factors and into whole projections."""

import torch

from offline_compress.factors.decomposition import Factors
from palu_vllm.format.mixing import spreading_matrix


def rotate_factors(factors: Factors, rotation: torch.Tensor) -> Factors:
    """The same product with latents rotated by ``rotation [rank, rank]``."""
    rotation = rotation.to(factors.up)
    groups = factors.down.unflatten(0, (len(factors.up), -1))
    return Factors((rotation @ groups).flatten(0, 1), rotation @ factors.up, factors.relative_error)


def rotate_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """A value projection ``[num_kv_heads * head_dim, hidden]`` whose heads are rotated each, in float64."""
    rotation = spreading_matrix(head_dim).to(weight.device)
    return (rotation @ weight.double().unflatten(0, (-1, head_dim))).flatten(0, 1)


def rotate_columns(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """An output projection ``[hidden, num_heads * head_dim]`` that takes such values, in float64."""
    rotation = spreading_matrix(head_dim).to(weight.device)
    return (weight.double().unflatten(1, (-1, head_dim)) @ rotation.T).flatten(1)
