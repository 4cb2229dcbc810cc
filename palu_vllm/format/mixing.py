"""Orthogonal matrices that spread latents evenly over their numbers, before those are quantized.

Singular values make the first numbers of a latent large and the last small, so one scale for all of them wastes most
codes on the small ones. An orthogonal matrix R whose entries are about equal evens them out, and changes nothing
else: ``down' = R down`` and ``up' = R up`` give ``up'^T down' = up^T down`` (Palu, section 3.4; QuaRot).
"""

from collections.abc import Sequence

import torch

from palu_vllm.format.latent_format import Tier


def spreading_matrix(size: int) -> torch.Tensor:
    """An orthogonal matrix, float64 ``[size, size]``, of entries at most ``sqrt(2 / size)``.

    The Kronecker product of Sylvester's Hadamard matrix with the discrete Hartley transform of the odd factor of
    ``size``; a power of two gives a Hadamard matrix. Its own inverse.
    """
    odd = size // (size & -size)
    angles = torch.outer(torch.arange(odd), torch.arange(odd)).remainder(odd).double() * (2 * torch.pi / odd)
    matrix = (angles.cos() + angles.sin()) / odd**0.5
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    while len(matrix) < size:
        matrix = torch.kron(two, matrix)
    return matrix


def mixing_of_tiers(tiers: Sequence[Tier]) -> torch.Tensor:
    """``R`` of a latent, one block per tier: numbers are mixed only with those that have the same bits and scale."""
    return torch.block_diag(*(spreading_matrix(tier.size) for tier in tiers))
