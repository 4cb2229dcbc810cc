"""Group sizes of K and V: what was asked for, what the model allows, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline_compress.grouping import groupings
from offline_compress.options import CompressOptions
from offline_compress.run.errors import CompressionError
from palu_vllm.format.config import AttentionGeometry


def sizes_of(heads: int, **options: int) -> tuple[int, int, tuple[str, ...]]:
    geometry = AttentionGeometry(256, 2, num_heads=heads, num_kv_heads=heads, head_dim=16)
    (key, value), notes = groupings(CompressOptions("M", Path("OUT"), **options), geometry)
    for side in (key, value):
        assert side.num_groups * side.size == heads and side.full_rank == 16 * side.size
    return key.size, value.size, notes


@given(
    st.integers(1, 64), st.none() | st.integers(1, 64), st.none() | st.integers(1, 64), st.none() | st.integers(1, 64)
)
def test_sizes_that_are_taken_divide_the_heads_and_each_other(heads, both, own_k, own_v):
    try:
        key, value, notes = sizes_of(heads, group_size=both, group_size_k=own_k, group_size_v=own_v)
    except CompressionError as error:
        assert "divide" in str(error) and str(error).count(".") == 1
        return
    assert heads % key == heads % value == max(key, value) % min(key, value) == 0
    assert (own_k or both or key, own_v or both or value) == (key, value)
    assert bool(notes) == (both is None and None in (own_k, own_v) and (heads % 4 != 0))


def test_the_own_size_wins_over_the_common_one_and_the_default_fills_in():
    assert sizes_of(8) == (4, 4, ())
    assert sizes_of(8, group_size=2, group_size_v=8) == (2, 8, ())
    assert sizes_of(8, group_size_k=1) == (1, 4, ())
    note = "group size 3, because 4 does not divide 6 key-value heads"
    assert sizes_of(6, group_size_v=6) == (3, 6, (note,))


@pytest.mark.parametrize(
    ("heads", "options", "sentence"),
    [
        (8, {"group_size_k": 3}, "group size 3 does not divide the 8 key-value heads; expected one of 1, 2, 4, 8"),
        (6, {"group_size_k": 2, "group_size_v": 3}, "neither of the group sizes 2 of K and 3 of V divides the other"),
        (6, {"group_size_k": 2}, "neither of the group sizes 2 of K and 3 of V divides the other; give --group-size-k"),
        (8, {"group_size_v": 0}, "group size v is 0; expected at least 1"),
    ],
)
def test_refusals(heads, options, sentence):
    with pytest.raises(CompressionError, match=sentence):
        sizes_of(heads, **options)
