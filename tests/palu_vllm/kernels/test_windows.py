"""Sinks and a window: the specification against the published definition, the kernels against the specification."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palu_vllm.kernels.gpu.decode.plan import DecodePlan
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.reference import ReferenceAttention, latent_attention, rebuild_keys, rotate
from tests.palu_vllm.kernels.gpu.decode.test_absorbed import absorbed_plan
from tests.palu_vllm.kernels.gpu.decode.test_kernel import decode, small_tiling
from tests.palu_vllm.kernels.gpu.prefill.test_kernel import TINY_WORKSPACE, prefill
from tests.palu_vllm.kernels.paged_batches import PADDING_ROWS, Problem, cos_sin_table, random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise
from tests.support.shapes import LAYERS, PACKED_LAYERS, Layer, sizes

SINKS, WINDOW = 5, 20
REQUESTS = [(1, 63), (33, 33), (0, 3), (5, 90), (2, 4)]
SMALL = {
    "bias": Layer(sizes(4, 2, 32, 2, 24, 20), has_bias=True),
    "partial_rotary_key_norm": Layer(sizes(4, 2, 48, 1, 17, 9), has_key_norm=True).with_rotary_dim(32),
}
every_layer = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("bias", torch.float16, id="bias"),
        pytest.param("partial_rotary_key_norm", torch.float32, id="partial", marks=pytest.mark.slow),
    ],
)
both_ways = pytest.mark.parametrize("shift", [False, True], ids=["keep", "shift"])


def streaming(name: str, shift: bool, num_sinks: int = SINKS, window: int = WINDOW) -> Layer:
    return (SMALL | LAYERS | PACKED_LAYERS)[name].with_sinks(num_sinks, window, shift)


def attend(problem: Problem, attention: type = ReferenceAttention) -> torch.Tensor:
    out = problem.empty_out()
    attention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


def reference(problem: Problem) -> torch.Tensor:
    out = problem.empty_out().float()
    ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


@both_ways
def test_is_dense_attention_to_what_the_published_cache_holds(shift):
    """Token by token: the first 5 and the last 20, itself among them, at positions within the cache or of the text."""
    problem = random_problem(streaming("bias", shift), [(70, 70)])
    shape, raw = problem.shape, problem.query
    table = problem.rebuild.cos_sin
    served = replace(problem, query=torch.cat((rotate(raw[:70], table, torch.arange(70)), raw[70:])))
    latent_k, latent_v = problem.stored()
    alone = []
    for last in range(70):
        recent = range(max(SINKS, last + 1 - WINDOW), last + 1)
        held = torch.tensor([*range(min(SINKS, last + 1)), *recent])
        positions = torch.arange(len(held)) if shift else held
        keys = rebuild_keys(latent_k[held], problem.rebuild, shape, positions)
        query = rotate(raw[last : last + 1], table, positions[-1:])
        seen = torch.ones(1, len(held), dtype=torch.bool)
        alone.append(latent_attention(query, keys, latent_v[held], seen, shape))
    torch.testing.assert_close(attend(served)[:70], torch.cat(alone), atol=1e-4, rtol=1e-4)


@both_ways
@pytest.mark.parametrize("name", SMALL)
def test_a_cache_that_holds_everything_is_full_attention(name, shift):
    whole = random_problem(SMALL[name], REQUESTS)
    wide = replace(whole, shape=streaming(name, shift, 4, 86).shape)
    torch.testing.assert_close(attend(wide), attend(whole))


def test_without_sinks_it_is_the_window():
    layer = LAYERS["sliding_window"]
    problem = random_problem(layer, REQUESTS)
    assert torch.equal(attend(replace(problem, shape=replace(problem.shape, num_sinks=0))), attend(problem))
    assert not torch.allclose(attend(replace(problem, shape=replace(problem.shape, num_sinks=4))), attend(problem))


def test_shifting_matters_behind_the_window_only():
    keep, shift = (random_problem(streaming("bias", shift), [(60, 60)]) for shift in (False, True))
    moved = (attend(keep) - attend(shift))[:60].abs().amax((1, 2))
    assert (moved[: SINKS + WINDOW] < 1e-5).all() and (moved[SINKS + WINDOW :] > 1e-5).all()


@both_ways
@every_layer
def test_one_query_per_request(name, shift, dtype):
    problem = random_problem(streaming(name, shift), [(1, 63), (0, 5), (1, 3), (1, 111)], dtype=dtype)
    assert_as_precise(decode(problem, DecodePlan(small_tiling(problem)), 3), reference(problem), problem)


@both_ways
def test_slow_pairs_are_absorbed_at_the_places_where_keys_are_met(shift):
    problem = random_problem(streaming("two_groups_bias_head_dim_80", shift), [(1, 90), (1, 24)])
    assert_as_precise(decode(problem, absorbed_plan(problem), 2), reference(problem), problem)


def test_several_queries_where_sinks_stay():
    problem = random_problem(streaming("bias", shift=False), [(4, 63), (2, 2), (3, 6), (1, 26)])
    plan = DecodePlan(small_tiling(problem, queries=4))
    assert_as_precise(decode(problem, plan, 2), reference(problem), problem)


@both_ways
@every_layer
def test_prefill(name, shift, dtype):
    problem = random_problem(streaming(name, shift), REQUESTS, dtype=dtype)
    assert_as_precise(prefill(problem), reference(problem), problem)


@both_ways
@pytest.mark.parametrize("num_sinks", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_several_passes_equal_one(shift, num_sinks):
    problem = random_problem(streaming("bias", shift, num_sinks), REQUESTS, block_size=24)
    assert torch.equal(prefill(problem, workspace_bytes=TINY_WORKSPACE), prefill(problem))


@pytest.mark.slow
@both_ways
def test_a_few_queries_are_prefilled_where_sinks_shift(shift):
    problem = random_problem(streaming("bias", shift), [(3, 50), (1, 33)])
    attention = TritonAttention(problem.shape, problem.rebuild)
    assert (attention.plan(3, torch.float32, problem.cache.device) is None) == shift
    assert_as_precise(attend(problem, TritonAttention), reference(problem), problem)


@pytest.mark.slow
@both_ways
def test_a_table_with_a_factor_on_its_length(shift):
    """As yarn has: turning a query back keeps its length."""
    problem = random_problem(streaming("bias", shift), REQUESTS)
    problem = replace(problem, rebuild=replace(problem.rebuild, cos_sin=1.3 * cos_sin_table(90, 32)))
    assert_as_precise(prefill(problem), reference(problem), problem)


lengths = st.integers(1, 90).flatmap(lambda length: st.tuples(st.integers(1, length), st.just(length)))


@pytest.mark.slow
@settings(max_examples=10, derandomize=True)
@given(
    name=st.sampled_from(["bias", "partial_rotary_key_norm", "uncompressed", "4_bits_odd_ranks"]),
    shift=st.booleans(),
    num_sinks=st.integers(1, 40),
    window=st.integers(1, 50),
    requests=st.lists(lengths, min_size=1, max_size=2),
    block_size=st.sampled_from([16, 24, 64]),
    workspace_bytes=st.sampled_from([TINY_WORKSPACE, 2**26]),
    seed=st.integers(0, 1000),
)
def test_random_batches(name, shift, num_sinks, window, requests, block_size, workspace_bytes, seed):
    problem = random_problem(streaming(name, shift, num_sinks, window), requests, block_size, seed=seed)
    assert_as_precise(prefill(problem, workspace_bytes=workspace_bytes), reference(problem), problem)
    alone = [(1, seq_len) for _, seq_len in requests]
    single = random_problem(streaming(name, shift, num_sinks, window), alone, block_size, seed=seed)
    assert_as_precise(decode(single, DecodePlan(small_tiling(single)), 2), reference(single), single)


@both_ways
@pytest.mark.parametrize("query_len", [1, 9])
def test_nothing_between_sinks_and_window_is_read(shift, query_len):
    problem = random_problem(streaming("bias", shift), [(query_len, 150)])
    table = problem.batch.block_table.clone()
    freed = slice(1, (150 - query_len + 1 - WINDOW) // 16)
    problem.cache[table[0, freed].long()] = float("nan")
    table[0, freed] = 0
    freed_problem = replace(problem, batch=replace(problem.batch, block_table=table))
    for attention in (ReferenceAttention, TritonAttention):
        assert attend(freed_problem, attention)[:-PADDING_ROWS].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_sinks": 4, "sliding_window": None}, "got num_sinks 4, expected 0 or, beside a sliding window, more"),
        ({"num_sinks": -1}, "got num_sinks -1"),
        ({"shift_sinks": True}, "got shift_sinks and num_sinks 0"),
    ],
)
def test_contradicting_sizes_are_refused(change, message):
    problem = random_problem(LAYERS["sliding_window"], [(1, 1)])
    with pytest.raises(ValueError, match=message):
        ReferenceAttention(replace(problem.shape, **change), problem.rebuild)
