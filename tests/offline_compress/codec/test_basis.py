"""A basis makes the loss a sum over numbers, and a decoder spreads it as evenly as pays."""

import pytest
import torch

from offline_compress.codec.basis import Basis, basis, decoder, loss
from palu_vllm.format.codec.coding import decode, encode
from palu_vllm.format.codec.layer_codec import SideCodec
from tests.support.codecs.layers import coded_format

WIDTH = 32


def spread(seed, power):
    """A positive matrix whose eigenvalues fall, ``[1, WIDTH, WIDTH]``."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)).Q
    return ((axes * torch.arange(1, WIDTH + 1).double() ** -power) @ axes.T)[None]


COVARIANCE, METRIC = spread(0, 2.0), spread(1, 1.0)


def damped():
    return METRIC + 0.1 * METRIC.diagonal(dim1=1, dim2=2).mean() * torch.eye(WIDTH, dtype=torch.float64)


def test_the_basis_diagonalises_covariance_and_metric():
    found = basis(COVARIANCE, METRIC)
    inverse = torch.linalg.inv(found.vectors)
    torch.testing.assert_close(inverse @ COVARIANCE @ inverse.mT, torch.diag_embed(found.variances))
    torch.testing.assert_close(found.vectors.mT @ damped() @ found.vectors, torch.eye(WIDTH).double()[None])
    assert (found.variances.diff() <= 0).all()


@pytest.mark.parametrize("tiers", [((32, 3),), ((8, 8), (8, 4), (16, 2))])
def test_the_loss_is_what_codes_of_gaussian_keys_cost(tiers):
    found, form = basis(COVARIANCE, METRIC), coded_format(tiers)
    side = SideCodec(form, decoder(found, form), torch.zeros(1, WIDTH))
    root = torch.linalg.cholesky(COVARIANCE[0])
    x = torch.randn(20000, 1, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) @ root.T
    payload, scale = encode(side.numbers(x).float(), form)
    error = (torch.einsum("tgr,gdr->tgd", decode(payload, form) * scale, side.decoder) - x)[:, 0].double()
    cost = 0.5 * torch.einsum("ti,ij,tj->t", error, damped()[0], error).mean()
    # a scale of its own fits every token better than one for all, and numbers that exceed 8 bits' range are cut
    assert 0.7 < cost / loss(found, form) < 1.6


def test_no_other_power_of_the_variances_costs_less():
    found = basis(COVARIANCE, METRIC)
    lengths = {}
    for power in (0.0, 0.25, 0.5):
        scales = found.variances.sqrt() * found.variances ** (power / -1)  # what a unit of each number is worth
        lengths[power] = float((scales.square()).sum() * (found.variances / scales.square()).mean())
    assert lengths[0.25] < min(lengths[0.0], lengths[0.5])
    expected = found.variances.sqrt().sum() ** 2 / WIDTH
    assert lengths[0.25] == pytest.approx(float(expected))


def test_sixteen_bits_are_an_orthogonal_matrix():
    matrix = decoder(basis(COVARIANCE, METRIC), coded_format(((32, 16),)))[0]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(WIDTH), rtol=0, atol=1e-5)


def test_a_layer_that_nothing_depends_on_is_coded_plainly():
    found = basis(COVARIANCE, torch.zeros_like(METRIC))
    torch.testing.assert_close(found.variances[0], torch.linalg.eigvalsh(COVARIANCE[0]).flip(0))
    assert isinstance(found, Basis) and decoder(found, coded_format(((32, 4),))).isfinite().all()
