"""Packing and unpacking: round trips, the error bound of rounding, and rows that do not fit float16."""

import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palu_vllm.format.latent_format import (
    BITS,
    PLANES,
    LatentFormat,
    Tier,
    cut_into_scale_groups,
    cut_into_tiers,
    plane_bytes,
)
from palu_vllm.format.packing import (
    clip_argument,
    pack,
    pack_codes,
    quantize,
    quantize_symmetric,
    rounded,
    unpack,
    unpack_codes,
)

every_width = pytest.mark.parametrize("bits", BITS[1:])


def one_tier(size: int, bits: int) -> LatentFormat:
    return LatentFormat((Tier(size, bits),), "float32")


@settings(max_examples=200)
@given(bits=st.sampled_from(list(PLANES)), size=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_codes_survive_packing(bits, size, seed):
    codes = torch.randint(0, 2**bits, (3, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, sum(plane_bytes(size, width) for width in PLANES[bits]))
    assert torch.equal(unpack_codes(packed, size, bits), codes)


@pytest.mark.parametrize("bits", PLANES)
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


@settings(max_examples=200)
@given(
    bits=st.sampled_from(BITS[1:]),
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


def test_bytes_without_groups_symmetry_and_clipping_have_not_changed():
    """Caches outlive versions. The digest is that of the format before it had any of the three."""
    x = ((torch.arange(6 * 80) * 7919 % 1009 - 500) / 37).view(6, 80)
    x[1] *= 1e-6
    x[2], x[3, 40:] = -0.0, x[3, 40:].abs()
    x[4, 7], x[5, 70] = float("nan"), 1e30
    form = LatentFormat((Tier(16, 16), Tier(16, 8), Tier(16, 4), Tier(16, 3), Tier(16, 2)), "float16")
    digest = hashlib.sha256(pack(x, form).numpy().tobytes()).hexdigest()
    assert digest == "c99d010985d0727ac08e075947e949fc847c93a01ce9c21172d7be763c4388c6"


@every_width
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", [1.0, 0.8])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_a_group_is_packed_as_if_it_were_alone(bits, symmetric, clip, size):
    x = torch.randn(3, 2, 107, generator=torch.Generator().manual_seed(0)) * torch.logspace(2, -5, 107)
    form = LatentFormat(cut_into_scale_groups([Tier(107, bits)], size), "float32", symmetric, clip)
    read = unpack(pack(x, form), form)
    for start in range(0, 107, size):
        part = x[..., start : start + size]
        alone = replace(form, tiers=(Tier(part.shape[-1], bits),))
        assert torch.equal(read[..., start : start + size], unpack(pack(part, alone), alone))


@settings(max_examples=200)
@given(
    bits=st.sampled_from(BITS[1:]),
    size=st.integers(1, 130),
    offset=st.floats(-100, 100),
    magnitude=st.floats(-4, 4),
    seed=st.integers(0, 2**32),
)
def test_error_of_symmetric_codes_is_at_most_half_a_step(bits, size, offset, magnitude, seed):
    """And a whole step at the lower end of the range of 2 bits, whose codes are -2, -1, 0 and 1 steps."""
    x = torch.randn(4, size, generator=torch.Generator().manual_seed(seed)) * 10**magnitude + offset
    form = replace(one_tier(size, bits), symmetric=True)
    bound = x.abs().amax(-1, keepdim=True)
    step = bound / (2 ** (bits - 1) - 1)
    error = (unpack(pack(x, form), form) - x).abs()
    assert (error <= step / 2 * 1.001 + bound * 2.0**-10 + 2**bits * 2.0**-25).all()


@every_width
@pytest.mark.parametrize("row", [[3.0] * 8, [-7.5] * 8, [0.0] * 8, [-0.0] * 8], ids=["positive", "negative", "0", "-0"])
def test_constant_rows_of_symmetric_codes(bits, row):
    form, x = replace(one_tier(8, bits), symmetric=True), torch.tensor([row])
    torch.testing.assert_close(unpack(pack(x, form), form), x, rtol=2**-10, atol=0)


@every_width
def test_symmetric_codes_negate(bits):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).half().float()
    (codes, scale), (negated, same) = quantize_symmetric(x, bits), quantize_symmetric(-x, bits)
    assert torch.equal(scale, same)
    between = (x / scale.float() + 0.5) % 1 != 0
    assert torch.equal((codes.int() + negated.int())[between], torch.full_like(codes, 0).int()[between] + 2**bits)


@every_width
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", [1.0, 0.7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30, -1e30])
def test_what_does_not_fit_harms_its_group_only(bits, symmetric, clip, bad):
    x = torch.randn(3, 2, 81, generator=torch.Generator().manual_seed(0))
    tiers = (Tier(16, 16), *cut_into_scale_groups([Tier(65, bits)], 32))
    form = LatentFormat(tiers, "float32", symmetric, clip)
    good = unpack(pack(x, form), form)
    x[1, 0, 50] = bad
    read = unpack(pack(x, form), form)
    assert read[1, 0, 48:80].isnan().all()
    read[1, 0, 48:80] = good[1, 0, 48:80]
    assert torch.equal(read, good)


@every_width
@pytest.mark.parametrize("clip", [0.9, 0.5, 0.05])
def test_clipping_shrinks_the_range_about_its_centre(bits, clip):
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) + 3
    codes, scale, minimum = quantize(x, bits, clip)
    low, high = x.aminmax(dim=-1, keepdim=True)
    span = (2**bits - 1) * scale.float()
    torch.testing.assert_close(span, (high - low) * clip, rtol=0.01, atol=0.01)
    torch.testing.assert_close(minimum.float() + span / 2, (low + high) / 2, rtol=0.01, atol=0.01)
    assert (codes[x == low] == 0).all() and (codes[x == high] == 2**bits - 1).all()
    half = 2 ** (bits - 1)
    codes, scale = quantize_symmetric(x, bits, clip)
    bound = x.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(scale.float() * (half - 1), bound * clip, rtol=0.001, atol=0)
    assert (codes[x == bound] == 2**bits - 1).all()


@pytest.mark.parametrize("bits", [2, 3])
def test_clipping_pays_where_codes_are_few_and_one_number_stands_out(bits):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 6.0
    errors = {}
    for clip in (1.0, 0.85):
        form = replace(one_tier(64, bits), clip=clip)
        errors[clip] = (unpack(pack(x, form), form) - x)[:, 1:].square().mean()
    assert errors[0.85] < errors[1.0]


def test_what_the_kernel_is_told_of_the_ratio():
    form = replace(one_tier(16, 4), clip=0.75)
    assert clip_argument(form) == 0.125 and clip_argument(one_tier(16, 4)) == 0.0
    assert clip_argument(replace(form, symmetric=True)) == 0.75


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", [1.0, 0.7])
def test_rounding_is_packing_and_unpacking(symmetric, clip):
    tiers = cut_into_scale_groups((Tier(16, 16), Tier(48, 8), Tier(33, 3)), 32)
    form = LatentFormat(tiers, "float16", symmetric, clip)
    latent = torch.randn(5, 3, form.rank, generator=torch.Generator().manual_seed(0))
    latent[1, 1, 70] = torch.inf
    assert torch.equal(rounded(latent, form).view(torch.int32), unpack(pack(latent, form), form).view(torch.int32))
