"""Drift is 1 for numbers like those that levels are made for, and grows with the square of what is larger."""

import pytest
import torch

from palu_vllm.format.codec.coding import units
from palu_vllm.format.codec.drift import expected_errors, side_drift, token_drift
from palu_vllm.format.codec.levels import distortion
from palu_vllm.format.codec.positions import BLOCK
from palu_vllm.kernels.codec.reference import decode_tokens, encode_tokens
from tests.support.codecs.layers import coded_format, layer_codec

TIERS = ((16, 8), (32, 4), (16, 2)), ((32, 5), (32, 3))
TOKENS = 400


def gaussian(codec, size=1.0, tokens=TOKENS):
    """Keys, values and positions whose numbers have a standard deviation of ``size``; position 0 is left out."""
    generator = torch.Generator().manual_seed(3)
    positions = torch.arange(1, tokens + 1)

    def heads(side, centre):
        y = size * torch.randn(tokens, side.num_groups, side.form.rank, generator=generator) / units(side.form)
        return centre + torch.einsum("tgr,gdr->tgd", y, side.decoder).reshape(tokens, *side.sink.shape)

    return heads(codec.key, codec.key_centre(positions // BLOCK)), heads(codec.value, codec.value_mean), positions


def drift(codec, key, value, positions):
    return token_drift(codec, key, value, encode_tokens(codec, key, value, positions), positions)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_about_one_for_unit_gaussians(groups):
    """A little less: the scale of a token follows its own few numbers."""
    tiers = TIERS if groups == 1 else (((16, 4), (16, 3)), ((32, 4),))
    codec = layer_codec(*tiers, groups=groups)
    found = drift(codec, *gaussian(codec)).mean(-1)
    assert found.min() > 0.8 and found.max() < 1.02


def test_larger_numbers_have_errors_larger_by_the_square():
    codec = layer_codec(*TIERS)
    small, large = (drift(codec, *gaussian(codec, size)).mean(-1) for size in (1.0, 1.5))
    assert (large / small).tolist() == pytest.approx([2.25, 2.25], rel=0.01)


def test_it_is_the_error_of_what_is_read():
    """Of full rank, in the basis of the codes."""
    codec = layer_codec(*TIERS)
    key, value, positions = gaussian(codec)
    read = decode_tokens(codec, encode_tokens(codec, key, value, positions), positions)
    for side, heads, found, drifted in zip((codec.key, codec.value), (key, value), read,
                                           drift(codec, key, value, positions), strict=True):  # fmt: skip
        errors = side.numbers(heads - found).float().square() / expected_errors(side.form)
        torch.testing.assert_close(errors.mean((-2, -1)), drifted, rtol=2e-3, atol=2e-3)


def test_position_0_and_what_is_not_quantized_are_left_out():
    codec = layer_codec(((64, 16),), TIERS[1])
    key, value, positions = gaussian(codec, tokens=4)
    found = drift(codec, key, value, positions - 1)
    assert found[0].isnan().all() and found[1].isnan().tolist() == [True, False, False, False]


def test_errors_are_expected_in_units_of_levels():
    form = coded_format(((2, 8), (3, 4)))
    expected = [distortion(8)] * 2 + [distortion(4)] * 3
    assert (expected_errors(form) * units(form).square()).tolist() == pytest.approx(expected)


def test_a_scale_that_is_no_number_gives_none():
    codec = layer_codec(*TIERS)
    key, value, positions = gaussian(codec, tokens=3)
    key[1, 0, 0] = torch.inf
    assert drift(codec, key, value, positions).isfinite().tolist() == [[True, False, True], [True, True, True]]
    assert side_drift(codec.value, value[:0], codec.value_mean, torch.empty(0, 1, codec.value.form.bytes).byte(),
                      torch.empty(0, 1, 1)).shape == (0,)  # fmt: skip
