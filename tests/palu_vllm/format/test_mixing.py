"""Rotations are orthogonal and spread evenly, within tiers."""

import pytest
import torch

from palu_vllm.format.latent_format import Tier
from palu_vllm.format.mixing import mixing_of_tiers, spreading_matrix

SIZES = [1, 2, 7, 16, 48, 64, 96, 112, 144, 210, 384]


@pytest.mark.parametrize("size", SIZES)
def test_orthogonal_and_its_own_inverse(size):
    matrix = spreading_matrix(size)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_entries_are_about_equal(size):
    assert spreading_matrix(size).abs().max() <= (2 / size) ** 0.5 + 1e-12


@pytest.mark.parametrize("size", [2, 16, 64])
def test_powers_of_two_give_hadamard_matrices(size):
    torch.testing.assert_close(spreading_matrix(size).abs(), torch.full((size, size), size**-0.5).double())


def test_tiers_are_not_mixed():
    rotation = mixing_of_tiers([Tier(16, 8), Tier(48, 3)])
    assert rotation.shape == (64, 64)
    assert not rotation[:16, 16:].any() and not rotation[16:, :16].any()
