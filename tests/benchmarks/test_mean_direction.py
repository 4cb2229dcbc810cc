"""The split of the mean direction: orthogonal, exact where it should be, and of the bytes that are said."""

import pytest
import torch

from benchmarks.mean_direction import WAYS, Apart, changed, onto_first


@pytest.fixture
def mean() -> torch.Tensor:
    return torch.randn(3, 24)


def test_reflections_are_orthogonal_and_take_the_direction_to_the_first_axis(mean):
    for direction in (mean, torch.eye(24)[:1], -torch.eye(24)[:1]):
        matrix = onto_first(direction)
        torch.testing.assert_close(matrix @ matrix.mT, torch.eye(24).expand_as(matrix), atol=1e-5, rtol=0)
        along = (matrix @ direction[:, :, None])[..., 0]
        torch.testing.assert_close(along[:, 1:], torch.zeros_like(along[:, 1:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_basis_is_orthogonal(way, mean):
    basis = Apart(way, 4, mean).basis()
    torch.testing.assert_close(basis @ basis.mT, torch.eye(24).expand_as(basis), atol=1e-5, rtol=0)


def test_multiples_of_the_mean_are_read_as_16_bits_allow(mean):
    latents = torch.linspace(-3, 3, 7)[:, None, None] * mean
    lost = {way: (Apart(way, 2, mean)(latents) - latents).abs().max() for way in WAYS}
    assert lost["mean direction apart"] < 1e-2 < min(lost["rotated"], lost["first latent apart"])


@pytest.mark.parametrize("way", WAYS)
def test_more_bits_lose_less(way, mean):
    latents = torch.randn(50, 3, 24)
    lost = [(Apart(way, bits, mean)(latents) - latents).square().mean() for bits in (8, 4, 3, 2)]
    assert lost == sorted(lost)


def test_bytes_count_the_number_apart(mean):
    assert Apart("rotated", 4, mean).form.bytes == 4 + 12
    assert Apart("mean direction apart", 4, mean).form.bytes == 4 + 16  # 2 and 12 bytes, padded to 4


def test_changes_end_with_the_block():
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.randn(2, 4)
    before = model(x)
    with changed(model, {"0": lambda out: out + 1}):
        torch.testing.assert_close(model(x), before + 1)
    assert torch.equal(model(x), before)
