"""The prefill kernel against the specification."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palu_vllm.kernels.gpu.launch import TritonAttention, new_scratch
from palu_vllm.kernels.gpu.prefill.launches import lengths_of, prefill_attention
from palu_vllm.kernels.gpu.prefill.plan import WORKSPACE_BYTES, PrefillTiling, plan_prefill, scratch_shapes
from palu_vllm.kernels.gpu.tiling import Device, padded
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import ReferenceAttention
from tests.palu_vllm.kernels.paged_batches import PADDING_ROWS, Problem, only_request, random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise
from tests.support.shapes import LARGE_LAYERS, LAYERS, PACKED_LAYERS
from tests.support.speed.cases import diagonal, examples, few

SMALL_DEVICE = Device(multiprocessors=1, shared_memory=227 * 1024)
TINY_WORKSPACE = 1  # bytes: one tile of one group at a time
REQUESTS = [(1, 40), (33, 33), (0, 3), (5, 50)]
ALL_LAYERS = LAYERS | PACKED_LAYERS


def small_tiling(problem: Problem) -> PrefillTiling:
    """Several tiles in every direction, so that all loops run more than once."""
    shape = problem.shape
    rows = max(32, padded(shape.queries_per_kv))
    return PrefillTiling(32, 32, padded(shape.head_dim // 2), rows, tokens=16, values=64, value_tiles=2)


def prefill(
    problem: Problem, tiling: PrefillTiling | None = None, workspace_bytes: int = WORKSPACE_BYTES
) -> torch.Tensor:
    """In scratch memory full of NaN."""
    out, shape, batch = problem.empty_out(), problem.shape, problem.batch
    tiling = tiling or small_tiling(problem)
    lengths, element_size = lengths_of(problem.query, batch), problem.query.element_size()
    plan = plan_prefill(shape, lengths, tiling, element_size, SMALL_DEVICE, workspace_bytes)
    scratch = tuple(
        torch.full(sizes, float("nan")) for sizes in scratch_shapes(shape, lengths, tiling, plan, element_size)
    )
    prefill_attention(problem.query, problem.cache, batch, out, shape, problem.rebuild, tiling, plan, scratch)
    return out


def reference(problem: Problem) -> torch.Tensor:
    out = problem.empty_out().float()
    ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


@diagonal(layer=ALL_LAYERS, dtype={"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16})
def test_is_as_precise_as_torch(layer, dtype):
    problem = random_problem(layer, REQUESTS, dtype=dtype)
    assert_as_precise(prefill(problem), reference(problem), problem)


@pytest.mark.parametrize("layer", few(PACKED_LAYERS, "4_bits_odd_ranks", "tiers", "two_values_per_slot_groups"))
def test_packed_values_in_several_products_of_one_program(layer):
    problem = random_problem(layer, REQUESTS, dtype=torch.float16)
    tiling = replace(small_tiling(problem), values=16, value_tiles=3)
    assert_as_precise(prefill(problem, tiling), reference(problem), problem)


@pytest.mark.parametrize("layer", LARGE_LAYERS.values(), ids=LARGE_LAYERS)
def test_large_layers_are_as_precise_as_torch(layer):
    problem = random_problem(layer, [(9, 17), (1, 3)], dtype=torch.float16)
    out = problem.empty_out()
    TritonAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    assert_as_precise(out, reference(problem), problem)


@st.composite
def requests(draw) -> list[tuple[int, int]]:
    """Pairs of (query_len, seq_len), at least one of them with a query."""
    seq_lens = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    drawn = [(draw(st.integers(0, length)), length) for length in seq_lens]
    return drawn if any(query_len for query_len, _ in drawn) else [(seq_lens[0], seq_lens[0]), *drawn[1:]]


@settings(max_examples=examples(6, 12), derandomize=True)
@given(
    layer=st.sampled_from(list(ALL_LAYERS.values())),
    window=st.none() | st.integers(1, 70),
    requests=requests(),
    block_size=st.sampled_from([16, 24, 64, 128, 256]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    workspace_bytes=st.sampled_from([TINY_WORKSPACE, 2**16, WORKSPACE_BYTES]),
    seed=st.integers(0, 1000),
)
def test_random_batches(layer, window, requests, block_size, dtype, workspace_bytes, seed):
    layer = replace(layer, shape=replace(layer.shape, sliding_window=window))
    problem = random_problem(layer, requests, block_size, dtype, seed)
    assert_as_precise(prefill(problem, workspace_bytes=workspace_bytes), reference(problem), problem)


@pytest.mark.parametrize(
    "name",
    [
        "sliding_window",
        "4_bits_odd_ranks",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("seven_queries_per_kv_bias", "uncompressed")),
    ],
)
def test_several_passes_equal_one(name):
    """Bit for bit: what passes carry is the state that one pass has between its steps."""
    problem = random_problem(ALL_LAYERS[name], REQUESTS, block_size=24)
    assert torch.equal(prefill(problem, workspace_bytes=TINY_WORKSPACE), prefill(problem))


@pytest.mark.parametrize("workspace_bytes", [TINY_WORKSPACE, WORKSPACE_BYTES])
def test_loose_and_tight_bounds_of_the_lengths_give_the_same(workspace_bytes):
    problem = random_problem(LAYERS["sliding_window"], REQUESTS)
    loose = replace(problem.batch, max_seq_len=200, max_query_len=90)
    tight = replace(problem.batch, total_seq_len=int(problem.batch.seq_lens.sum()))
    outs = [
        prefill(replace(problem, batch=batch), workspace_bytes=workspace_bytes)
        for batch in (problem.batch, loose, tight)
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_chunks_equal_one_shot():
    problem = random_problem(LAYERS["sliding_window"], [(63, 63)])
    chunks = []
    for start, stop in ((0, 1), (1, 40), (40, 63)):
        batch = PagedBatch(
            block_table=problem.batch.block_table,
            seq_lens=torch.tensor([stop], dtype=torch.int32),
            query_start_loc=torch.tensor([0, stop - start], dtype=torch.int32),
            max_query_len=stop - start,
            max_seq_len=stop,
        )
        chunks.append(prefill(replace(problem, query=problem.query[start:stop], batch=batch)))
    torch.testing.assert_close(torch.cat(chunks), prefill(problem)[:63])


def test_batch_company_changes_nothing():
    problem = random_problem(LAYERS["seven_queries_per_kv_bias"], REQUESTS)
    alone = torch.cat([prefill(only_request(problem, request)) for request in range(len(REQUESTS))])
    torch.testing.assert_close(prefill(problem)[:-PADDING_ROWS], alone)


def test_decode_kernel_gives_the_same_result():
    problem = random_problem(LAYERS["two_groups_bias_head_dim_80"], [(1, 63), (1, 17)])
    out = problem.empty_out()
    TritonAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    torch.testing.assert_close(prefill(problem), out)


@pytest.mark.parametrize(
    "name",
    ["three_queries_per_kv_head_dim_96", "keys_16_values_4_bits", pytest.param("3_bits_bias", marks=pytest.mark.slow)],
)
def test_launch_chooses_prefill_for_several_queries(name):
    problem = random_problem(ALL_LAYERS[name], REQUESTS)
    out = problem.empty_out()
    TritonAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    assert_as_precise(out, reference(problem), problem)


def test_launch_keeps_to_its_workspace():
    problem, sizes = random_problem(LAYERS["sliding_window"], REQUESTS), []

    def allocate(shapes, device):
        sizes.append(shapes[0][0] * 4)
        return new_scratch(shapes, device)

    out, workspace_bytes = problem.empty_out(), 40_000
    attention = TritonAttention(problem.shape, problem.rebuild, allocate, workspace_bytes=workspace_bytes)
    attention.attend(problem.query, problem.cache, problem.batch, out)
    assert_as_precise(out, reference(problem), problem)
    assert 0 < sizes[0] <= workspace_bytes
    assert len(sizes) == 1
