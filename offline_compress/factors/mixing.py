"""The mixing of ``palu_vllm/format/mixing.py`` is folded into factors and into whole projections."""

import torch

from offline_compress.factors.decomposition import Factors
from palu_vllm.format.mixing import spreading_matrix


def mixed_factors(factors: Factors, mixing: torch.Tensor) -> Factors:
    """The same product with latents mixed by ``mixing [rank, rank]``."""
    mixing = mixing.to(factors.up)
    groups = factors.down.unflatten(0, (len(factors.up), -1))
    return Factors((mixing @ groups).flatten(0, 1), mixing @ factors.up, factors.relative_error)


def mixed_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """A value projection ``[num_kv_heads * head_dim, hidden]`` whose heads are mixed each, in float64."""
    mixing = spreading_matrix(head_dim).to(weight.device)
    return (mixing @ weight.double().unflatten(0, (-1, head_dim))).flatten(0, 1)


def mixed_columns(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """An output projection ``[hidden, num_heads * head_dim]`` that takes such values, in float64."""
    mixing = spreading_matrix(head_dim).to(weight.device)
    return (weight.double().unflatten(1, (-1, head_dim)) @ mixing.T).flatten(1)
