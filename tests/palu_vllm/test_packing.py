"""Packing and unpacking: round trips, the error bound of rounding, and rows that do not fit float16."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palu_vllm.latent_format import PLANES, LatentFormat, Tier, cut_into_tiers, plane_bytes
from palu_vllm.packing import pack, pack_codes, quantize, unpack, unpack_codes

every_width = pytest.mark.parametrize("bits", PLANES)


def one_tier(size: int, bits: int) -> LatentFormat:
    return LatentFormat((Tier(size, bits),), "float32")


@settings(max_examples=200, deadline=None)
@given(bits=st.sampled_from(list(PLANES)), size=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_codes_survive_packing(bits, size, seed):
    codes = torch.randint(0, 2**bits, (3, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, sum(plane_bytes(size, width) for width in PLANES[bits]))
    assert torch.equal(unpack_codes(packed, size, bits), codes)


@every_width
def test_bits_of_a_number_are_where_the_format_says(bits):
    size = 17
    for number in range(size):
        codes = torch.zeros(size, dtype=torch.uint8)
        codes[number] = 2**bits - 1
        expected, start = torch.zeros_like(pack_codes(codes, bits)), 0
        for width in PLANES[bits]:
            count = plane_bytes(size, width)
            expected[start + number % count] = (2**width - 1) << (number // count * width)
            start += count
        assert torch.equal(pack_codes(codes, bits), expected)


@settings(max_examples=200, deadline=None)
@given(
    bits=st.sampled_from(list(PLANES)),
    size=st.integers(1, 130),
    offset=st.floats(-100, 100),
    magnitude=st.floats(-4, 4),
    seed=st.integers(0, 2**32),
)
def test_error_is_at_most_half_a_step_and_the_rounding_of_scale_and_minimum(bits, size, offset, magnitude, seed):
    x = torch.randn(4, size, generator=torch.Generator().manual_seed(seed)) * 10**magnitude + offset
    read = unpack(pack(x, one_tier(size, bits)), one_tier(size, bits))
    spread = (x.amax(-1) - x.amin(-1)).unsqueeze(-1)
    half = 2.0**-11
    tiny = 2.0**-25  # below it float16 knows nothing
    bound = spread / (2**bits - 1) / 2 + half * (2 * x.abs().amax() + 2 * spread) + 2**bits * tiny
    assert ((read - x).abs() <= bound).all()


@every_width
@pytest.mark.parametrize("row", [[3.0] * 8, [-7.5] * 8, [0.0] * 8], ids=["positive", "negative", "zero"])
def test_constant_rows_are_exact(bits, row):
    x = torch.tensor([row])
    assert torch.equal(unpack(pack(x, one_tier(8, bits)), one_tier(8, bits)), x)


@every_width
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_of_one_sign_use_all_codes(bits, sign):
    """The reference implementation clamps its zero point, which destroys such rows."""
    x = sign * torch.linspace(10, 11, 64).unsqueeze(0)
    codes, _, _ = quantize(x, bits)
    assert codes.min() == 0 and codes.max() == 2**bits - 1


@every_width
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30, -1e6])
def test_a_row_that_does_not_fit_reads_as_nan_and_its_neighbours_are_unharmed(bits, bad):
    x = torch.randn(3, 2, 33, generator=torch.Generator().manual_seed(0))
    form = one_tier(33, bits)
    good = unpack(pack(x, form), form)
    x[1, 0, 5] = bad
    read = unpack(pack(x, form), form)
    assert read[1, 0].isnan().all()
    read[1, 0] = good[1, 0]
    assert torch.equal(read, good)


@every_width
def test_tiny_rows_read_as_tiny(bits):
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * 1e-12
    assert unpack(pack(x, one_tier(16, bits)), one_tier(16, bits)).abs().max() <= 1e-7


def test_a_tier_is_packed_as_if_it_were_alone():
    x = torch.randn(5, 2, 96, generator=torch.Generator().manual_seed(0))
    form = LatentFormat(cut_into_tiers(96, [(0.25, 16), (0.25, 4), (0.5, 3)]), "float32")
    read = unpack(pack(x, form), form)
    assert torch.equal(read[..., :32], x[..., :32])
    for start, size, bits in ((32, 16, 4), (48, 48, 3)):
        alone = one_tier(size, bits)
        assert torch.equal(read[..., start : start + size], unpack(pack(x[..., start : start + size], alone), alone))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_numbers_of_16_bits_are_stored_as_they_come(dtype):
    x = torch.randn(4, 31).to(getattr(torch, dtype))
    form = LatentFormat((Tier(31, 16),), dtype)
    assert torch.equal(unpack(pack(x, form), form), x.float())


def test_unpacking_writes_where_it_is_told():
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(6, 40)
    unpack(pack(x, one_tier(24, 4)), one_tier(24, 4), out[:, 8:32])
    assert torch.equal(out[:, 8:32], unpack(pack(x, one_tier(24, 4)), one_tier(24, 4)))
    assert not out[:, :8].any() and not out[:, 32:].any()
