"""Bytes of a slot, counted by hand and by identity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palu_vllm.format.latent_format import (
    ALIGNMENT,
    BITS,
    TIER_STEP,
    LatentFormat,
    SlotFormat,
    Tier,
    cut_into_scale_groups,
    cut_into_tiers,
)

bits = st.sampled_from(BITS)


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ([Tier(128, 8)], 4 + 128),
        ([Tier(128, 4)], 4 + 64),
        ([Tier(128, 3)], 4 + 32 + 16),
        ([Tier(128, 2)], 4 + 32),
        ([Tier(128, 16)], 256),
        ([Tier(17, 4)], 16),  # 4 + 9, padded
        ([Tier(17, 3)], 12),  # 4 + 5 + 3
        ([Tier(32, 8), Tier(96, 3)], 2 * 4 + 32 + 24 + 12),
        ([Tier(16, 16), Tier(16, 2)], 4 + 32 + 4),
    ],
)
def test_bytes_of_a_part(tiers, expected):
    assert LatentFormat(tuple(tiers), "float16").bytes == expected


@given(st.lists(st.tuples(st.integers(1, 300), bits), min_size=1, max_size=4))
def test_bytes_are_header_and_payload_padded(tiers):
    form = LatentFormat(tuple(Tier(*tier) for tier in tiers), "bfloat16")
    used = sum(size * width + (32 if width != 16 else 0) for size, width in tiers) / 8
    assert form.bytes % ALIGNMENT == 0
    assert used <= form.bytes < used + 2 * len(tiers) + ALIGNMENT  # at most one started byte per plane


def test_a_slot_is_both_parts():
    key, value = LatentFormat((Tier(64, 4),), "float16"), LatentFormat((Tier(32, 16),), "float32")
    assert SlotFormat(key, value).bytes == key.bytes + value.bytes == 36 + 128


@given(st.integers(1, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_tiers_cover_the_latent(rank, weights, data):
    widths = sorted(data.draw(st.lists(bits, min_size=len(weights), max_size=len(weights))), reverse=True)
    tiers = cut_into_tiers(
        rank, [(weight / sum(weights), width) for weight, width in zip(weights, widths, strict=True)]
    )
    assert sum(tier.size for tier in tiers) == rank
    assert all(tier.size % TIER_STEP == 0 for tier in tiers[:-1]) and all(tier.size > 0 for tier in tiers)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([(1.0, 5)], "bits other than"),
        ([(0.5, 8)], "add up to 1"),
        ([(1.5, 8), (-0.5, 4)], "not positive"),
        ([(0.5, 4), (0.5, 8)], "fewer or as many"),
    ],
)
def test_tiers_that_make_no_sense_are_refused(fractions, message):
    with pytest.raises(ValueError, match=message):
        cut_into_tiers(64, fractions)


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ([Tier(128, 4)], 4 + 64),  # the scale padded to 4 bytes
        ([Tier(64, 4)] * 2, 4 + 64),
        ([Tier(32, 3)] * 3, 8 + 3 * (8 + 4)),
        ([Tier(16, 16), Tier(16, 2)], 4 + 32 + 4),
    ],
)
def test_bytes_of_a_symmetric_part(tiers, expected):
    assert LatentFormat(tuple(tiers), "float16", symmetric=True).bytes == expected


@given(st.lists(st.tuples(st.integers(1, 300), bits), min_size=1, max_size=4), st.integers(0, 8))
def test_groups_cover_their_tiers(tiers, tiles):
    tiers, size = [Tier(*tier) for tier in tiers], tiles * TIER_STEP
    groups = cut_into_scale_groups(tiers, size)
    assert groups == tuple(group for tier in tiers for group in cut_into_scale_groups([tier], size))
    for tier in tiers:
        cut = cut_into_scale_groups([tier], size)
        assert sum(group.size for group in cut) == tier.size and {group.bits for group in cut} == {tier.bits}
        if not tier.is_quantized or not size:
            assert cut == (tier,)
        else:
            assert all(group.size == size for group in cut[:-1]) and 0 < cut[-1].size <= size


@pytest.mark.parametrize("size", [-16, 1, 24])
def test_groups_that_make_no_sense_are_refused(size):
    with pytest.raises(ValueError, match=f"latent group size {size} is not 0 or a positive multiple of 16"):
        cut_into_scale_groups([Tier(64, 4)], size)


def test_equal_neighbours_are_one_run():
    form = LatentFormat((Tier(32, 8), Tier(32, 4), Tier(32, 4), Tier(16, 4)), "float32")
    assert form.runs == ((Tier(32, 8), 1), (Tier(32, 4), 2), (Tier(16, 4), 1))
    assert form.has_scale_groups and not LatentFormat((Tier(32, 8), Tier(32, 4)), "float32").has_scale_groups
