"""The torch path against the specification, and the identities that batching and tiling must keep.

All caches are NaN wherever nothing was stored, so every test also proves that unused slots are never read.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import rms_norm
from torch.utils._python_dispatch import TorchDispatchMode

from palu_vllm.kernels.cpu import attention as cpu
from palu_vllm.kernels.cpu.attention import TorchAttention, tiling
from palu_vllm.kernels.cpu.tiles import scratch
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import ReferenceAttention, visible
from tests.palu_vllm.kernels.paged_batches import (
    PADDING_ROWS,
    UNTOUCHED,
    Problem,
    only_request,
    poisoned_cache,
    random_problem,
)
from tests.support.shapes import KINDS, LAYERS, PACKED_LAYERS, Layer, sizes
from tests.support.speed.cases import diagonal, examples, few

# Decodes of very different lengths, a first chunk, a chunk behind a prefix, and a prefill of several runs.
REQUESTS = [(1, 63), (5, 5), (7, 140), (1, 1), (1, 111), (300, 311), (1, 400)]
EVERY_LAYER = LAYERS | PACKED_LAYERS
BLOCK_SIZES = {"16": 16, "128": 128}
every_kind = pytest.mark.parametrize("layer", few(EVERY_LAYER, *KINDS))


def attend(problem: Problem, attention: type = TorchAttention) -> torch.Tensor:
    """Float32 ``[tokens + PADDING_ROWS, num_heads, rank_v]``, whatever the dtype of the problem."""
    out = problem.empty_out().float()
    attention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, out)
    return out


def one_request(problem: Problem, start: int, stop: int) -> Problem:
    """Queries ``start .. stop`` of a problem whose only request is a prefill from its first token."""
    batch = PagedBatch(
        block_table=problem.batch.block_table,
        seq_lens=torch.tensor([stop], dtype=torch.int32),
        query_start_loc=torch.tensor([0, stop - start], dtype=torch.int32),
        max_query_len=stop - start,
        max_seq_len=stop,
    )
    return replace(problem, query=problem.query[start:stop], batch=batch)


def exact(problem: Problem) -> torch.Tensor:
    """The attention of ``attend`` in float64, in order of requests and without padding rows."""
    shape, rebuild = problem.shape, problem.rebuild
    latent_k, latent_v = problem.stored()
    width = (shape.num_kv_heads, shape.head_dim)
    keys = latent_k.double()
    if rebuild.k_up is not None:
        keys = torch.einsum("tgr,grd->tgd", keys, rebuild.k_up.double())
    keys = keys.reshape(-1, *width) + (0 if rebuild.k_bias is None else rebuild.k_bias.double().view(width))
    if rebuild.k_norm is not None:
        keys = rms_norm(keys, keys.shape[-1:], rebuild.k_norm.double(), rebuild.k_norm_eps)
    outputs, tokens_before = [], 0
    starts = problem.batch.query_start_loc.tolist()
    for request, seq_len in enumerate(problem.batch.seq_lens.tolist()):
        own = slice(tokens_before, tokens_before + seq_len)
        tokens_before += seq_len
        cos, sin = rebuild.cos_sin[:seq_len, None].double().chunk(2, dim=-1)
        turned, kept = keys[own].tensor_split((2 * cos.shape[-1],), dim=-1)
        first, second = turned.chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin, kept), dim=-1)
        query = problem.query[starts[request] : starts[request + 1]].double()
        positions = torch.arange(seq_len)
        hidden = ~visible(positions[seq_len - len(query) :], positions, shape.sliding_window)
        rotated = rotated.repeat_interleave(shape.queries_per_kv, dim=1)
        values = latent_v[own].double().repeat_interleave(shape.num_heads // shape.num_groups_v, dim=1)
        scores = shape.scale * torch.einsum("qhd,thd->hqt", query, rotated)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqt,thr->qhr", weights, values))
    return torch.cat(outputs)


@diagonal(layer=EVERY_LAYER, block_size=BLOCK_SIZES)
def test_error_is_at_most_twice_that_of_the_specification(layer, block_size):
    problem = random_problem(layer, REQUESTS, block_size)
    truth = exact(problem)
    error = (attend(problem)[:-PADDING_ROWS] - truth).abs().max()
    allowed = 2 * (attend(problem, ReferenceAttention)[:-PADDING_ROWS] - truth).abs().max()
    assert error <= allowed


@diagonal(layer=LAYERS, dtype={"torch.bfloat16": torch.bfloat16, "torch.float16": torch.float16})
def test_half_precision_caches_are_computed_in_float32(layer, dtype):
    problem = random_problem(layer, REQUESTS, 16, dtype)
    torch.testing.assert_close(attend(problem), attend(problem, ReferenceAttention), atol=1e-5, rtol=1e-5)


requests = st.integers(1, 300).flatmap(lambda seq_len: st.tuples(st.integers(1, min(seq_len, 40)), st.just(seq_len)))


@settings(max_examples=examples(15, 40))
@given(
    layer=st.sampled_from(list(EVERY_LAYER.values())),
    window=st.none() | st.integers(1, 200),
    batch=st.lists(requests | st.tuples(st.just(1), st.integers(1, 300)), min_size=1, max_size=6),
    block_size=st.sampled_from([8, 16, 48, 128, 512]),
    seed=st.integers(0, 2**32),
)
def test_random_batches_equal_the_specification(layer, window, batch, block_size, seed):
    layer = layer if window is None else layer.with_window(window)
    problem = random_problem(layer, batch, block_size, seed=seed)
    torch.testing.assert_close(attend(problem), attend(problem, ReferenceAttention), atol=1e-5, rtol=1e-5)


@settings(max_examples=examples(10, 25))
@given(
    layer=st.sampled_from(list(EVERY_LAYER.values())),
    sinks=st.tuples(st.integers(1, 80), st.integers(1, 200), st.booleans()),
    batch=st.lists(requests | st.tuples(st.just(1), st.integers(1, 300)), min_size=1, max_size=5),
    block_size=st.sampled_from([8, 16, 48, 128]),
    seed=st.integers(0, 2**32),
)
def test_sinks_and_windows_equal_the_specification(layer, sinks, batch, block_size, seed):
    problem = random_problem(layer.with_sinks(*sinks), batch, block_size, seed=seed)
    torch.testing.assert_close(attend(problem), attend(problem, ReferenceAttention), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [False, True], ids=["keep", "shift"])
@pytest.mark.parametrize("query_len", [1, 9])
def test_nothing_between_sinks_and_window_is_read(shift, query_len):
    problem = random_problem(LAYERS["two_groups_bias_head_dim_80"].with_sinks(5, 20, shift), [(query_len, 700)])
    table = problem.batch.block_table.clone()
    freed = slice(1, (700 - query_len + 1 - 20) // 16)
    problem.cache[table[0, freed].long()] = float("nan")
    expected = attend(problem)
    table[0, freed] = 10**6
    assert torch.equal(attend(replace(problem, batch=replace(problem.batch, block_table=table))), expected)
    assert expected[:query_len].isfinite().all()


@every_kind
def test_padding_rows_stay_untouched(layer):
    assert (attend(random_problem(layer, REQUESTS))[-PADDING_ROWS:] == UNTOUCHED).all()


@every_kind
def test_which_blocks_hold_the_latents_changes_nothing(layer):
    problem = random_problem(layer, REQUESTS)
    order = torch.randperm(problem.cache.shape[0])
    moved_cache = torch.empty_like(problem.cache)
    moved_cache[order] = problem.cache
    moved = replace(problem.batch, block_table=order[problem.batch.block_table.long()].int())
    assert torch.equal(attend(problem), attend(replace(problem, cache=moved_cache, batch=moved)))


@diagonal(layer=EVERY_LAYER, garbage={"negative": -1, "huge": 10**6, "block_of_another": 1})
def test_table_entries_that_nobody_needs_are_not_believed(layer, garbage):
    problem = random_problem(layer, REQUESTS)
    window = layer.shape.sliding_window or 10**6
    table = problem.batch.block_table.clone()
    for request, (query_len, seq_len) in enumerate(REQUESTS):
        table[request, -(-seq_len // 16) :] = garbage
        table[request, : max(0, seq_len - query_len - window + 1) // 16] = garbage
    changed = replace(problem, batch=replace(problem.batch, block_table=table))
    assert torch.equal(attend(problem), attend(changed))


@every_kind
def test_batch_company_changes_nothing(layer):
    problem = random_problem(layer, REQUESTS)
    alone = [attend(only_request(problem, request)) for request in range(len(REQUESTS))]
    torch.testing.assert_close(attend(problem)[:-PADDING_ROWS], torch.cat(alone), atol=5e-6, rtol=1e-5)


@diagonal(layer=EVERY_LAYER, block_size=BLOCK_SIZES)
def test_chunks_and_decodes_equal_one_shot(layer, block_size):
    problem = random_problem(layer, [(311, 311)], block_size)
    bounds = [0, 1, 30, 299, 309, 310, 311]
    chunks = [attend(one_request(problem, *chunk)) for chunk in zip(bounds, bounds[1:], strict=False)]
    torch.testing.assert_close(torch.cat(chunks), attend(problem)[:-PADDING_ROWS], atol=5e-6, rtol=1e-5)


@every_kind
def test_how_the_context_is_tiled_changes_rounding_only(layer, monkeypatch):
    problem = random_problem(layer, REQUESTS)
    expected = attend(problem)
    monkeypatch.setattr(cpu, "DECODE_TILE", 32)
    monkeypatch.setattr(cpu, "DECODE_FLOATS", 1)
    monkeypatch.setattr(cpu, "PREFILL_RUN", 7)
    monkeypatch.setattr(cpu, "PREFILL_TILES", range(16, 16))
    torch.testing.assert_close(attend(problem), expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_stored_is_what_is_attended_to(dtype):
    problem = random_problem(LAYERS["two_groups_bias_head_dim_80"], REQUESTS, dtype=dtype)
    latents, cache = problem.latents, poisoned_cache(problem.shape, problem.cache.shape[0], 16, dtype)
    TorchAttention(problem.shape, problem.rebuild).store(
        latents.latent_k, latents.latent_v, cache, latents.slot_mapping
    )
    assert torch.equal(attend(replace(problem, cache=cache)), attend(problem))


def test_negative_slots_are_not_written():
    problem = random_problem(LAYERS["uncompressed"], [(3, 3)])
    cache = poisoned_cache(problem.shape, 4, 16, torch.float32)
    latents = problem.latents
    TorchAttention(problem.shape, problem.rebuild).store(
        latents.latent_k, latents.latent_v, cache, torch.tensor([-1, 17, -1])
    )
    written = cache.isfinite().all(-1).all(1).flatten().nonzero().flatten()
    assert written.tolist() == [17]


def test_buffers_of_inference_mode_serve_outside_of_it(monkeypatch):
    monkeypatch.setattr(scratch, "buffers", {})
    problem = random_problem(LAYERS["uncompressed"], REQUESTS)
    with torch.inference_mode():
        inside = attend(problem)
    assert torch.equal(inside, attend(problem))


def test_layers_with_one_rotary_table_share_its_rotations():
    problem = random_problem(LAYERS["uncompressed"], [(1, 5)])
    first, second = (TorchAttention(problem.shape, problem.rebuild) for _ in range(2))
    assert first.source.rotations is second.source.rotations


@pytest.mark.parametrize("layer", EVERY_LAYER.values(), ids=EVERY_LAYER)
@pytest.mark.parametrize("block_size", [8, 48, 128, 3000])
@pytest.mark.parametrize("run", [1, 2, 256])
def test_tiles_are_whole_blocks(layer, block_size, run):
    tile_tokens, tiles_per_step = tiling(layer.shape, run, block_size)
    assert tile_tokens >= block_size and tile_tokens % block_size == 0
    assert tiles_per_step >= 1


class LargestAllocation(TorchDispatchMode):
    """Bytes of the largest storage that an operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {leaf.untyped_storage().data_ptr() for leaf in args if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in known:
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("query_len", [1, 300])
def test_scratch_does_not_grow_with_the_context(query_len, monkeypatch):
    layer = Layer(sizes(2, 1, 16, 1, 8, 8))
    monkeypatch.setattr(cpu, "DECODE_FLOATS", 2**16)
    largest = []
    for seq_len in (20_000, 100_000):
        problem = random_problem(layer, [(query_len, seq_len)], block_size=128)
        monkeypatch.setattr(scratch, "buffers", {})
        attention, out = TorchAttention(problem.shape, problem.rebuild), problem.empty_out()
        with LargestAllocation() as allocation:
            attention.attend(problem.query, problem.cache, problem.batch, out)
        largest.append(allocation.bytes)
    assert largest[0] == largest[1] < 2**22 < problem.cache.nbytes


def test_contradicting_operands_are_refused():
    problem = random_problem(LAYERS["all_heads_in_one_group"], [(1, 5)])
    with pytest.raises(ValueError, match="expected a multiple of group size 3"):
        TorchAttention(replace(problem.shape, group_size_k=3, group_size_v=3), problem.rebuild)
    with pytest.raises(ValueError, match="got query"):
        attend(replace(problem, query=problem.query[..., :60]))
