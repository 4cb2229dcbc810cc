"""Codes, levels and scales: what is nearest, what is least, what is exact."""

import pytest
import torch

from palu_vllm.format.codec.coding import decode, encode
from palu_vllm.format.codec.levels import GAUSSIAN, distortion, levels, nearest, unit
from tests.support.codecs.layers import coded_format

BITS = (8, 5, 4, 3, 2)


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_whole_numbers_that_int8_holds(bits):
    table = levels(bits)
    assert len(table) == 2**bits and (table.diff() > 0).all()
    assert torch.equal(table, table.round()) and torch.equal(table.to(torch.int8).float(), table)
    assert torch.equal(table.bfloat16().float(), table)


@pytest.mark.parametrize(("bits", "optimum"), [(2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002504), (8, 1e-4)])
def test_rounded_levels_lose_nothing_against_lloyd_and_max(bits, optimum):
    assert distortion(bits) < 1.01 * optimum


@pytest.mark.parametrize("bits", BITS)
def test_a_code_is_that_of_the_nearest_level(bits):
    x = 60 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    table = levels(bits) if bits < 8 else levels(bits)[1:]
    best = (x[:, None] - table).abs().amin(1)
    assert torch.equal((x - levels(bits)[nearest(x, bits).long()]).abs(), best)


@pytest.mark.parametrize("tiers", [((48, 4),), ((16, 8), (32, 3), (16, 2)), ((21, 3),), ((32, 5), (24, 3), (9, 2))])
def test_scale_and_codes_fit_each_other(tiers):
    """The scale is near the least squared error, and no code is better than the one that was taken with it."""
    form = coded_format(tiers)
    steps = torch.cat([torch.full((tier.size,), unit(tier.bits)) for tier in form.tiers])
    y = 5 * torch.randn(300, form.rank, generator=torch.Generator().manual_seed(1)) / steps
    payload, scale = encode(y, form)
    numbers = decode(payload, form)

    def error(s):
        return ((y - s * numbers) * steps).double().square().sum(-1).mean() / form.rank / 25

    assert payload.shape[-1] == form.bytes and (scale > 0).all()
    for factor in (0.95, 1.05):
        assert error(scale.float()) < error(scale.float() * factor)
    expected = sum(tier.size * distortion(tier.bits) for tier in form.tiers) / form.rank
    assert error(scale.float()) < 1.1 * expected
    start = 0
    for tier in form.tiers:
        part = slice(start, start + tier.size)
        x = y[:, part] / scale.float()
        table = levels(tier.bits)[1:] if tier.bits == 8 else levels(tier.bits)
        assert torch.equal((x - numbers[:, part]).abs(), (x[..., None] - table).abs().amin(-1))
        start += tier.size


def test_zeros_are_zeros_and_what_is_not_finite_is_not():
    form = coded_format(((16, 8), (32, 3)))
    y = torch.zeros(3, form.rank)
    y[1, 4], y[2, 40] = torch.nan, 1e30
    payload, scale = encode(y, form)
    assert scale[0] == 0 and scale[1:].isnan().all() and not payload[1:].any()


def test_sixteen_bits_are_float16():
    form = coded_format(((20, 16),))
    y = torch.randn(5, 20)
    payload, scale = encode(y, form)
    assert torch.equal(decode(payload, form), y.half().float()) and (scale == 1).all()


def test_levels_are_those_of_the_table():
    assert levels(4)[8:].tolist() == [6, 18, 31, 44, 58, 75, 96, 127] and set(GAUSSIAN) == {2, 3, 4, 5}
