"""Addresses past 2^31 elements and contexts of a million tokens, over a mapping of which hardly anything is used.

With 32-bit offsets a kernel would read or write elsewhere in the same mapping, where there are zeros: wrong results, no
crash.
"""

import mmap
import tempfile
from dataclasses import replace

import pytest
import torch

from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import ReferenceAttention
from tests.palu_vllm.kernels.paged_batches import Problem, cos_sin_table, random_problem
from tests.support.shapes import LAYERS, PACKED_LAYERS, Layer, sizes

SIGN = 2**31  # elements from which on a 32-bit offset is negative
MILLION = 2**20
SPACING = 5 * 10**8  # elements between blocks: the offset of block 5 is past 2^31, as int32 before block 0
REQUESTS = {"decode": [(1, 63), (1, 20)], "several_queries": [(4, 63)], "prefill": [(20, 63), (1, 5)]}
every_kind = pytest.mark.parametrize("requests", REQUESTS.values(), ids=REQUESTS)
every_layer = pytest.mark.parametrize(
    "layer", [LAYERS["two_groups_bias_head_dim_80"], PACKED_LAYERS["4_bits_odd_ranks"]], ids=["plain", "packed"]
)


def reserved(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros of a sparse file, which take space where they are written to."""
    with tempfile.TemporaryFile() as file:
        file.truncate(elements * dtype.itemsize)
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=dtype)


def far_apart(cache: torch.Tensor) -> torch.Tensor:
    """The same cache with blocks ``SPACING`` elements apart, 2^31 elements of the mapping before it."""
    mapping = reserved(SIGN + len(cache) * SPACING, cache.dtype)
    moved = mapping.as_strided(cache.shape, (SPACING, *cache.stride()[1:]), SIGN)
    moved.copy_(cache)
    return moved


def attend(problem: Problem) -> torch.Tensor:
    out = problem.empty_out()
    TritonAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


@every_layer
@every_kind
def test_blocks_past_two_to_the_31_are_read(layer, requests):
    problem = random_problem(layer, requests, dtype=torch.float16)
    far = replace(problem, cache=far_apart(problem.cache))
    assert int(problem.batch.block_table.max()) * far.cache.stride(0) > SIGN
    assert far.cache.stride(0) < SIGN, "the stride is an int32 to the kernels, so that the product must be widened"
    assert torch.equal(attend(far), attend(problem))


@every_layer
def test_slots_past_two_to_the_31_are_written(layer):
    problem = random_problem(layer, REQUESTS["prefill"], dtype=torch.float16)
    attention, latents = TritonAttention(problem.shape, problem.rebuild), problem.latents
    last = latents.slot_mapping.topk(3).indices  # packing is slow in the interpreter
    assert int(latents.slot_mapping[last].min()) // 16 * SPACING > SIGN
    caches = torch.zeros_like(problem.cache), far_apart(torch.zeros_like(problem.cache))
    for cache in caches:
        attention.store(latents.latent_k[last], latents.latent_v[last], cache, latents.slot_mapping[last])
    assert torch.equal(*caches) and caches[0].any()


@pytest.mark.parametrize("query_len", [1, 4, 20], ids=["decode", "several_queries", "prefill"])
def test_the_end_of_a_million_tokens(query_len):
    """A window leaves what the interpreter can walk through; its keys are rotated by the last positions."""
    layer = Layer(sizes(4, 2, 16, 2, 16, 32)).with_window(40)
    near = random_problem(layer, [(query_len, 80)], dtype=torch.float16)
    blocks = near.batch.block_table[0, :5]
    table = torch.zeros(1, MILLION // 16, dtype=torch.int32)
    table[0, -5:] = blocks
    batch = PagedBatch(
        block_table=table,
        seq_lens=torch.tensor([MILLION], dtype=torch.int32),
        query_start_loc=near.batch.query_start_loc,
        max_query_len=query_len,
        max_seq_len=MILLION,
    )
    problem = replace(near, batch=batch, rebuild=replace(near.rebuild, cos_sin=cos_sin_table(MILLION, 16)))
    expected = problem.empty_out().float()
    ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, batch, expected)
    actual, rows = attend(problem), slice(query_len)
    torch.testing.assert_close(actual[rows].float(), expected[rows], rtol=4e-3, atol=4e-3)
    assert not torch.allclose(actual[rows].float(), attend(near)[rows].float(), atol=0.02)
