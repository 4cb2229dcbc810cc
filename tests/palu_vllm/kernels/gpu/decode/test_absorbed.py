"""Decoding with slow rotary pairs absorbed, against the specification and against rebuilding whole keys."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palu_vllm.kernels.absorbed import known_frequencies
from palu_vllm.kernels.gpu.decode.plan import TERMS, DecodePlan, absorbing, tolerance_of
from palu_vllm.kernels.gpu.tiling import decode_rows
from tests.palu_vllm.kernels.gpu.decode.test_kernel import ALL_LAYERS, decode, reference, small_tiling
from tests.palu_vllm.kernels.paged_batches import Problem, random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise, largest_error
from tests.support.shapes import LAYERS
from tests.support.speed.cases import diagonal, examples

NAMES = [
    "per_head_odd_ranks",
    "all_heads_in_one_group",
    "two_groups_bias_head_dim_80",
    "three_queries_per_kv_head_dim_96",
    "head_dim_256",
    "4_bits_odd_ranks",
    "3_bits_bias",
    "keys_16_values_4_bits",
    "partial_rotary_bias_head_dim_80",
    "two_keys_per_slot",
    "two_values_per_slot_bias",
]
COMPRESSED = {name: replace(ALL_LAYERS[name], theta=5e5) for name in NAMES}
REQUESTS = [(1, 63), (1, 1), (0, 5), (1, 111)]
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
TWO_TYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16)}


def absorbed_plan(problem: Problem, queries: int = 1) -> DecodePlan:
    """With the fewest terms that absorb anything, whether that is worth it or not."""
    tiling = small_tiling(problem, queries=queries)
    frequencies = known_frequencies(problem.rebuild.cos_sin, problem.shape.head_dim)
    tolerance = tolerance_of(problem.query.dtype)
    plans = (absorbing(frequencies, problem.shape, tiling, terms, tolerance) for terms in TERMS)
    return next(plan for plan in plans if plan is not None)


@diagonal(layer=COMPRESSED, dtype=TWO_TYPES)
def test_is_as_precise_as_torch(layer, dtype):
    problem = random_problem(layer, REQUESTS, dtype=dtype)
    plan = absorbed_plan(problem)
    assert plan.tiling.half < layer.shape.head_dim // 2
    assert_as_precise(decode(problem, plan, num_splits=3), reference(problem), problem)


@diagonal(theta={"1e4": 1e4, "5e5": 5e5, "1e6": 1e6}, dtype=DTYPES)
def test_is_hardly_less_precise_than_rebuilding_whole_keys(theta, dtype):
    """By no more than the tolerance, relative to the largest number."""
    problem = random_problem(replace(LAYERS["seven_queries_per_kv_bias"], theta=theta), [(1, 150)], dtype=dtype)
    expected = reference(problem)[:1]
    absorbed = largest_error(decode(problem, absorbed_plan(problem), 2)[:1], expected)
    rebuilt = largest_error(decode(problem, DecodePlan(small_tiling(problem)), 2)[:1], expected)
    assert absorbed <= rebuilt + tolerance_of(dtype) * float(expected.abs().max())


@settings(max_examples=examples(4, 8), derandomize=True)
@given(
    layer=st.sampled_from(list(COMPRESSED.values())),
    window=st.none() | st.integers(1, 70),
    requests=st.lists(st.tuples(st.integers(1, 4), st.integers(4, 70)), min_size=1, max_size=3),
    num_splits=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_random_batches(layer, window, requests, num_splits, dtype, seed):
    layer = replace(layer, shape=replace(layer.shape, sliding_window=window))
    problem = random_problem(layer, requests, dtype=dtype, seed=seed)
    plan = absorbed_plan(problem, queries=4)
    assert_as_precise(decode(problem, plan, num_splits), reference(problem), problem)


@pytest.mark.parametrize(
    "name",
    [
        "all_heads_in_one_group",
        "two_keys_per_slot",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("3_bits_bias", "two_groups_bias_head_dim_80")),
    ],
)
def test_a_program_with_some_heads_of_a_group_absorbs_theirs(name):
    problem = random_problem(COMPRESSED[name], [(4, 63), (2, 20)])
    group_size = problem.shape.group_size
    tiling = replace(small_tiling(problem, queries=4), parts=group_size, rows=decode_rows(problem.shape, 4, group_size))
    frequencies = known_frequencies(problem.rebuild.cos_sin, problem.shape.head_dim)
    plans = (absorbing(frequencies, problem.shape, tiling, terms, tolerance_of(torch.float32)) for terms in TERMS)
    plan = next(plan for plan in plans if plan is not None)
    assert_as_precise(decode(problem, plan, num_splits=2), reference(problem), problem)


def test_a_wrong_coefficient_would_be_noticed():
    problem = random_problem(LAYERS["all_heads_in_one_group"], [(1, 111)])
    plan = absorbed_plan(problem)
    wrong = replace(plan, coefficients=plan.coefficients.roll(1, dims=-1))
    with pytest.raises(AssertionError, match="allowed"):
        assert_as_precise(decode(problem, wrong, 2), reference(problem), problem)
