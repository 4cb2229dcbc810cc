import math
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offline_compress.ranks.allocation import (
    allocate_ranks,
    by_group,
    by_matrix,
    largest_remainder,
    proportional_shares,
)
from palu_vllm.format.shape import RANK_STEP, rank_step

SHARINGS = (by_matrix, by_group)
FULL_RANKS = st.sampled_from([8, 16, 24, 48, 128, 320, 512])
RATIOS = st.floats(0.01, 1)
POSITIVE = st.floats(1e-12, 1e6)


def importance_of(groups: int) -> st.SearchStrategy:
    return st.lists(st.lists(POSITIVE, min_size=groups, max_size=groups), min_size=2, max_size=24)


@given(st.sampled_from(SHARINGS), st.integers(1, 4).flatmap(importance_of), FULL_RANKS, RATIOS)
def test_ranks_are_multiples_within_limits_and_add_up_to_the_budget(sharing, importance, full, ratio):
    ranks = allocate_ranks(sharing, importance, [full] * len(importance), ratio)
    step = rank_step(full)
    assert all(rank % step == 0 and step <= rank <= full for rank in ranks)
    target = ratio * full * len(ranks)
    assert abs(sum(ranks) - max(target, step * len(ranks))) <= step / 2 + 1e-6


@given(
    st.sampled_from(SHARINGS),
    st.sampled_from([(1, 4), (4, 1), (2, 8), (3, 6), (8, 2)]),
    st.sampled_from([8, 16, 24, 64, 80]),
    st.integers(1, 8),
    RATIOS,
    st.randoms(),
)
def test_groups_apart_share_the_cache_exactly(sharing, sizes, head_dim, layers, ratio, random):
    heads, fulls = max(sizes), [size * head_dim for size in sizes]
    groups = [heads // size for size in sizes]  # of K and of V: a rank costs as many numbers of the cache
    importance = [[random.uniform(0.1, 9) for _ in range(count)] for count in groups * layers]
    ranks = allocate_ranks(sharing, importance, fulls * layers, ratio)
    least = [rank_step(full) for full in fulls] * layers
    limits = list(zip(ranks, least, fulls * layers, strict=True))
    assert all(rank % step == 0 and step <= rank <= full for rank, step, full in limits)
    steps = [step * count for step, count in zip(least, groups * layers, strict=True)]
    kept = sum(rank * count for rank, count in zip(ranks, groups * layers, strict=True))
    target = max(ratio * 2 * layers * heads * head_dim, sum(steps))
    finest = [rank == full for rank, full, step in zip(ranks, fulls * layers, steps, strict=True) if step == min(steps)]
    assert abs(kept - target) <= (max(steps) if all(finest) else min(steps) / 2) + 1e-6


def test_uniform_is_the_same_share_of_both_sides():
    assert allocate_ranks(by_matrix, [[1.0] * 4, [1.0]] * 3, [64, 256] * 3, 0.5) == [32, 128] * 3
    # 24 numbers of 64 are half a step of K: half of the layers take it, and V stays where it is
    assert allocate_ranks(by_matrix, [[1.0] * 4, [1.0]] * 2, [64, 256] * 2, 0.375) == [32, 96, 16, 96]


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=20, unique=True), RATIOS, st.randoms())
def test_the_order_of_matrices_does_not_matter(weights, ratio, random):
    ranks = dict(
        zip(weights, allocate_ranks(by_matrix, [[w] for w in weights], [256] * len(weights), ratio), strict=True)
    )
    random.shuffle(weights)
    again = allocate_ranks(by_matrix, [[w] for w in weights], [256] * len(weights), ratio)
    assert again == [ranks[weight] for weight in weights]


@given(st.integers(1, 4).flatmap(importance_of), RATIOS)
@example([[1e6], [1e-12], [1e-5]], 0.75)
def test_more_importance_never_gets_less(importance, ratio):
    ranks = allocate_ranks(by_matrix, importance, [256] * len(importance), ratio)
    means = [math.fsum(groups) / len(groups) for groups in importance]
    means = [max(mean, 1e-9 * max(means)) for mean in means]  # below that they count as equal
    for (less, fewer), (more, most) in permutations(zip(means, ranks, strict=True), 2):
        assert fewer <= most or less >= more * (1 - 1e-12), "means that differ by rounding alone count as equal"


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_uniform_is_uniform_where_the_budget_divides(ratio):
    assert set(allocate_ranks(by_matrix, [[1.0, 1.0]] * 12, [256] * 12, ratio)) == {int(256 * ratio)}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_everything_kept_is_full_rank(sharing):
    assert allocate_ranks(sharing, [[1.0, 0.0], [1e9, 3.0]], [64] * 2, 1.0) == [64, 64]


def test_proportional_to_importance():
    assert allocate_ranks(by_matrix, [[1.0], [3.0]], [256] * 2, 0.25) == [32, 96]


def test_by_matrix_and_by_group_differ_where_a_group_reaches_the_cap():
    importance = [[100.0, 1.0], [10.0, 10.0]]
    assert allocate_ranks(by_matrix, importance, [256] * 2, 0.5) == [208, 48]
    assert allocate_ranks(by_group, importance, [256] * 2, 0.5) == [144, 112]


def test_zero_importance_everywhere_is_uniform():
    assert allocate_ranks(by_matrix, [[0.0]] * 4, [64] * 4, 0.5) == [32] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_importance_must_be_finite(bad):
    with pytest.raises(ValueError, match="not finite"):
        allocate_ranks(by_group, [[1.0], [bad]], [64] * 2, 0.5)


@pytest.mark.parametrize(("full", "step"), [(512, RANK_STEP), (80, 16), (24, 8), (12, 4), (7, 1)])
def test_the_step_divides_the_full_rank(full, step):
    assert rank_step(full) == step


def test_remainders_go_to_the_largest_fraction():
    assert largest_remainder([1.2, 1.7, 2.1], costs=[1] * 3, highest=5, total=5) == [1, 2, 2]


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30), st.floats(0, 1))
def test_shares_add_up(weights, position):
    total = len(weights) * (1 + 15 * position)
    shares = proportional_shares(weights, [1] * len(weights), [16] * len(weights), total)
    assert math.fsum(shares) == pytest.approx(total, rel=1e-6)
