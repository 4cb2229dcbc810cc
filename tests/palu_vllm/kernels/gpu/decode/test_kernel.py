"""The decode kernel against the specification."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernels.layers import SERVED_LAYERS
from palu_vllm.kernels.gpu.decode.launches import DecodeLaunches, partial_shapes
from palu_vllm.kernels.gpu.decode.plan import DecodePlan
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.gpu.tiling import DECODE_PAIRS, Tiling, decode_rows, half_tiles, padded, power_of_two
from palu_vllm.kernels.reference import ReferenceAttention
from tests.palu_vllm.kernels.paged_batches import PADDING_ROWS, UNTOUCHED, Problem, random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise
from tests.support.shapes import LARGE_LAYERS, LAYERS, PACKED_LAYERS, Layer
from tests.support.speed.cases import diagonal, examples, few

REQUESTS = [(1, 63), (1, 1), (0, 5), (1, 111)]
ALL_LAYERS = LAYERS | PACKED_LAYERS


def small_tiling(problem: Problem, queries: int = 1) -> Tiling:
    """Several tiles in every direction, so that all loops run more than once."""
    half = padded(problem.shape.head_dim // 2)
    parts = max(problem.shape.key_latents, problem.shape.value_latents)
    rows = decode_rows(problem.shape, queries, parts)
    tiles = half_tiles(half, DECODE_PAIRS)
    return Tiling(32, 32, half, rows, 64, num_stages=1, half_tiles=tiles, queries=queries, parts=parts)


def decode(problem: Problem, plan: DecodePlan, num_splits: int) -> torch.Tensor:
    out = problem.empty_out()
    batch = problem.batch
    sizes = partial_shapes(problem.shape, batch.seq_lens.shape[0], num_splits, plan.tiling.queries)
    partials = tuple(torch.full(size, float("nan")) for size in sizes)
    launches = DecodeLaunches(problem.shape, problem.rebuild, plan, problem.cache)
    launches.run(problem.query, problem.cache, batch, out, partials)
    return out


def reference(problem: Problem) -> torch.Tensor:
    out = problem.empty_out().float()
    ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


@diagonal(layer=ALL_LAYERS, dtype={"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16})
def test_is_as_precise_as_torch(layer, dtype):
    problem = random_problem(layer, REQUESTS, dtype=dtype)
    assert_as_precise(decode(problem, DecodePlan(small_tiling(problem)), num_splits=3), reference(problem), problem)


@pytest.mark.parametrize("layer", few(PACKED_LAYERS, "4_bits_odd_ranks", "tiers", "two_values_per_slot_groups"))
def test_packed_values_in_several_products_of_one_program(layer):
    problem = random_problem(layer, REQUESTS, dtype=torch.float16)
    plan = DecodePlan(replace(small_tiling(problem), values=16, value_tiles=3))
    assert_as_precise(decode(problem, plan, num_splits=3), reference(problem), problem)


@settings(max_examples=examples(6, 12), derandomize=True)
@given(
    layer=st.sampled_from(list(ALL_LAYERS.values())),
    window=st.none() | st.integers(1, 70),
    seq_lens=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    block_size=st.sampled_from([16, 24, 64, 128, 256]),
    num_splits=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_random_batches(layer, window, seq_lens, block_size, num_splits, dtype, seed):
    layer = replace(layer, shape=replace(layer.shape, sliding_window=window))
    problem = random_problem(layer, [(1, length) for length in seq_lens], block_size, dtype, seed)
    assert_as_precise(decode(problem, DecodePlan(small_tiling(problem)), num_splits), reference(problem), problem)


@settings(max_examples=examples(5, 10), derandomize=True)
@given(
    layer=st.sampled_from(
        [
            "per_head_odd_ranks",
            "two_groups_bias_head_dim_80",
            "seven_queries_per_kv_bias",
            "uncompressed",
            "group_of_three_bias_window",
            "4_bits_odd_ranks",
            "key_norm",
        ]
    ),
    window=st.none() | st.integers(1, 40),
    most=st.sampled_from([2, 4, 8]),
    lengths=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 60)), min_size=1, max_size=2),
    num_splits=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_several_queries_per_request_see_no_token_behind_them(layer, window, most, lengths, num_splits, seed):
    """Query lengths differ within a batch, as with drafts that were cut short."""
    layer = replace(ALL_LAYERS[layer], shape=replace(ALL_LAYERS[layer].shape, sliding_window=window))
    drawn = [(min(queries, most), cached) for queries, cached in lengths]
    requests = [(most, 37), *((queries, max(queries + cached, 1)) for queries, cached in drawn)]
    problem = random_problem(layer, requests, seed=seed)
    plan = DecodePlan(small_tiling(problem, queries=most))
    assert_as_precise(decode(problem, plan, num_splits), reference(problem), problem)


@pytest.mark.parametrize(
    "queries", [pytest.param(2, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow), 8, 9]
)
def test_a_few_queries_are_decoded_and_more_are_prefilled(queries):
    problem = random_problem(LAYERS["per_head_odd_ranks"], [(queries, 40), (1, 9)])
    out = problem.empty_out()
    attention = TritonAttention(problem.shape, problem.rebuild)
    assert (attention.plan(queries, problem.cache.dtype, problem.cache.device) is None) == (queries > 8)
    attention.attend(problem.query, problem.cache, problem.batch, out)
    assert_as_precise(out, reference(problem), problem)


def test_queries_that_would_not_fit_into_registers_are_prefilled():
    shape = SERVED_LAYERS["qwen_2_7b_128_384"].shape
    problem = random_problem(LAYERS["per_head_odd_ranks"], [(1, 3)])
    attention = TritonAttention(problem.shape, problem.rebuild)
    attention.shape = shape
    planned = [attention.plan(queries, torch.float16, problem.cache.device) for queries in (1, 2, 3, 8)]
    assert [plan and plan.tiling.rows for plan in planned] == [32, 16, 32, None]


@pytest.mark.parametrize("layer", LARGE_LAYERS.values(), ids=LARGE_LAYERS)
def test_large_layers_are_as_precise_as_torch(layer):
    """In the tiles of a launch: latents of up to 1024 numbers, or more rows than several queries may have."""
    problem = random_problem(layer, [(1, 17), (1, 3)], dtype=torch.float16)
    out = problem.empty_out()
    TritonAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    assert_as_precise(out, reference(problem), problem)


def test_layers_of_other_ranks_share_a_table_and_a_pool():
    """As in a model whose ranks differ between layers and between keys and values."""
    first = random_problem(LAYERS["group_of_five"], REQUESTS)
    shape = replace(first.shape, rank_k=48, rank_v=63)
    second = random_problem(Layer(shape), REQUESTS, seed=1)
    second = replace(second, rebuild=replace(second.rebuild, cos_sin=first.rebuild.cos_sin))
    for problem in (first, second):
        out = problem.empty_out()
        TritonAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
        assert_as_precise(out, reference(problem), problem)


@diagonal(
    name={name: name for name in ("group_of_six_eight_queries_per_kv", "group_of_three_bias_window", "3_bits_bias")},
    queries={"1": 1, "3": 3},
)
def test_parts_of_a_group_give_what_the_whole_group_gives(name, queries):
    problem = random_problem(ALL_LAYERS[name], [(queries, 40), (1, 9)])
    group_size, wide = problem.shape.group_size, small_tiling(problem, power_of_two(queries))
    narrow = replace(wide, parts=group_size, rows=decode_rows(problem.shape, wide.queries, group_size))
    whole, parts = (decode(problem, DecodePlan(tiling), num_splits=2) for tiling in (wide, narrow))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("num_splits", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_splits_do_not_change_the_result(num_splits):
    problem = random_problem(LAYERS["all_heads_in_one_group"], [(1, 111), (1, 33)])
    plan = DecodePlan(small_tiling(problem))
    whole, split = decode(problem, plan, 1), decode(problem, plan, num_splits)
    torch.testing.assert_close(split, whole)


def test_large_scores_do_not_overflow():
    problem = random_problem(LAYERS["all_heads_in_one_group"], [(1, 63)])
    problem = replace(problem, query=1000 * problem.query)
    assert_as_precise(decode(problem, DecodePlan(small_tiling(problem)), num_splits=2), reference(problem), problem)


@pytest.mark.parametrize(
    "name",
    [
        "two_groups_bias_head_dim_80",
        "keys_16_values_4_bits",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("3_bits_bias", "key_norm_4_bits")),
    ],
)
def test_launch_chooses_tiles_and_scratch(name):
    problem = random_problem(ALL_LAYERS[name], REQUESTS)
    allocated = []

    def allocate(shapes, device):
        allocated.extend(torch.full(shape, float("nan"), device=device) for shape in shapes)
        return tuple(allocated)

    out = problem.empty_out()
    attention = TritonAttention(problem.shape, problem.rebuild, allocate)
    attention.attend(problem.query, problem.cache, problem.batch, out)
    assert_as_precise(out, reference(problem), problem)
    assert len(allocated) == 3


def test_an_upper_bound_of_the_longest_request_is_enough():
    problem = random_problem(LAYERS["sliding_window"], [(1, 20)])
    bound = replace(problem, batch=replace(problem.batch, max_seq_len=4096))
    outs = problem.empty_out(), problem.empty_out()
    for each, out in zip((problem, bound), outs, strict=True):
        TritonAttention(each.shape, each.rebuild).attend(each.query, each.cache, each.batch, out)
    torch.testing.assert_close(*outs)
    assert (outs[0][-PADDING_ROWS:] == UNTOUCHED).all()


@pytest.mark.parametrize(
    "name",
    [
        "groups_4_bits",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("4_bits_odd_ranks", "symmetric_3_bits")),
    ],
)
def test_what_the_store_kernel_has_packed_is_read(name):
    problem = random_problem(PACKED_LAYERS[name], [(1, 21), (1, 4)])
    attention = TritonAttention(problem.shape, problem.rebuild)
    outs = problem.empty_out(), problem.empty_out()
    attention.attend(problem.query, problem.cache, problem.batch, outs[0])
    cache = torch.full_like(problem.cache, 255)
    latents = problem.latents
    attention.store(latents.latent_k, latents.latent_v, cache, latents.slot_mapping)
    attention.attend(problem.query, cache, problem.batch, outs[1])
    assert torch.equal(*outs)


@pytest.mark.parametrize(("name", "refused"), [("uncompressed", "cache"), ("2_bits_uncompressed", "query")])
def test_bfloat16_on_the_cpu_is_refused(name, refused):
    problem = random_problem(ALL_LAYERS[name], [(1, 5)], dtype=torch.bfloat16)
    attention = TritonAttention(problem.shape, problem.rebuild)
    with pytest.raises(ValueError, match=f"got a bfloat16 {refused} on the CPU"):
        attention.attend(problem.query, problem.cache, problem.batch, problem.empty_out())
