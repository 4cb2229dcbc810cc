"""The workspace of prefill holds the rotated keys and the latent values of the specification, and zeros."""

import pytest
import torch

from palu_vllm.kernels.gpu.prefill.context_tiles import number_tiles
from palu_vllm.kernels.gpu.prefill.launches import lengths_of, prefill_attention
from palu_vllm.kernels.gpu.prefill.plan import PrefillPlan, PrefillTiling, scratch_shapes
from palu_vllm.kernels.gpu.tiling import ceil_div, padded
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import gather_latents, rebuild_keys
from tests.palu_vllm.kernels.paged_batches import Problem, random_problem
from tests.support.shapes import KINDS, LAYERS, PACKED_LAYERS
from tests.support.speed.cases import few_names

REQUESTS = [(1, 40), (0, 50), (33, 33), (2, 67)]
ALL_LAYERS = LAYERS | PACKED_LAYERS
TILE = 16


def visible_positions(problem: Problem) -> list[torch.Tensor]:
    """What the queries of each request see."""
    window, positions = problem.shape.sliding_window, []
    for query_len, seq_len in REQUESTS:
        first = 0 if window is None else max(0, seq_len - query_len - window + 1)
        positions.append(torch.arange(first if query_len else seq_len, seq_len))
    return positions


def workspace(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Keys ``[KV heads, tokens, head_dim]``, values ``[groups, tokens, rank_v]``, and the tiles of the requests, after
    a single pass that began with NaN.
    """
    shape, tiles = problem.shape, sum(ceil_div(seq_len, TILE) for _, seq_len in REQUESTS)
    tiling = PrefillTiling(TILE, 32, padded(shape.head_dim // 2), rows=32, tokens=TILE, values=64)
    plan = PrefillPlan(shape.num_groups, tiles, shape.num_groups, tiles)
    sizes = scratch_shapes(shape, lengths_of(problem.query, problem.batch), tiling, plan, problem.query.element_size())
    scratch = tuple(torch.full(size, float("nan")) for size in sizes)
    prefill_attention(
        problem.query, problem.cache, problem.batch, problem.empty_out(), shape, problem.rebuild, tiling, plan, scratch
    )
    numbers = scratch[0].view(problem.query.dtype)
    keys = shape.num_kv_heads * tiles * TILE * shape.head_dim
    return (
        numbers[:keys].view(shape.num_kv_heads, tiles * TILE, shape.head_dim),
        numbers[keys:].view(shape.num_groups_v, tiles * TILE, shape.rank_v),
        scratch[1].view(torch.int32).tolist(),
    )


@pytest.mark.parametrize("name", few_names(ALL_LAYERS, *KINDS))
def test_every_visible_token_is_in_the_workspace(name):
    problem = random_problem(ALL_LAYERS[name], REQUESTS, block_size=24, dtype=torch.float16)
    keys, values, tile_starts = workspace(problem)
    for request, positions in enumerate(visible_positions(problem)):
        first, stop = tile_starts[request] * TILE, tile_starts[request + 1] * TILE
        assert stop - first == ceil_div(len(positions), TILE) * TILE
        latents = gather_latents(problem.cache, problem.batch.block_table[request], positions, problem.shape)
        latent_k, latent_v = (latent.to(torch.float16) for latent in latents)
        expected = rebuild_keys(latent_k, problem.rebuild, problem.shape, positions)
        end = first + len(positions)
        torch.testing.assert_close(keys[:, first:end].transpose(0, 1).float(), expected, atol=2e-3, rtol=2e-3)
        assert torch.equal(values[:, first:end].transpose(0, 1), latent_v)
        assert not values[:, end:stop].any()
        assert keys[:, end:stop].isfinite().all()


def test_tiles_that_no_request_has_are_left_alone():
    problem = random_problem(LAYERS["sliding_window"], REQUESTS)
    keys, values, tile_starts = workspace(problem)
    assert keys[:, tile_starts[-1] * TILE :].isnan().all()
    assert values[:, tile_starts[-1] * TILE :].isnan().all()


@pytest.mark.parametrize("window", [None, 20])
def test_tiles_are_numbered_for_more_requests_than_one_step_takes(window):
    query_lens = torch.randint(0, 30, (300,), dtype=torch.int32)
    seq_lens = query_lens + torch.randint(0, 100, (300,), dtype=torch.int32)
    batch = PagedBatch(
        block_table=torch.zeros(300, 1, dtype=torch.int32),
        seq_lens=seq_lens,
        query_start_loc=torch.cat((torch.zeros(1, dtype=torch.int32), query_lens.cumsum(0, dtype=torch.int32))),
        max_query_len=30,
        max_seq_len=130,
    )
    tile_starts = torch.empty(301, dtype=torch.int32)
    number_tiles(batch, tile_starts, window, TILE)
    seen = seq_lens if window is None else seq_lens.minimum(query_lens + window - 1)
    tiles = ((seen + TILE - 1) // TILE).where(query_lens > 0, torch.zeros_like(seen))
    assert tile_starts.tolist() == [0, *tiles.cumsum(0).tolist()]
