"""The contexts of a batch laid end to end in whole tiles: where the workspace of prefill has which token.

A request's context begins at the first token that one of its queries sees, or with tiles of sinks (``windows``); a
request without queries has none. Lengths are read on the device only, so that nothing waits for it.
"""

import torch
import triton
import triton.language as tl

from palu_vllm.kernels.gpu.tiles.ranges import range_of
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.windows import first_place, tile_at


@triton.jit
def number_tiles_kernel(
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    tile_starts_ptr,  # [requests + 1] int32
    num_requests,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    TILE_CONTEXT: tl.constexpr,
    TILE_REQUESTS: tl.constexpr,
    LEAST_QUERIES: tl.constexpr,
):
    """A single program: request r gets the tiles ``tile_starts[r] : tile_starts[r + 1]``, none where it has fewer than
    ``LEAST_QUERIES`` queries.
    """
    before = tl.zeros([], tl.int32)
    tl.store(tile_starts_ptr, before)
    for first_request in range(0, num_requests, TILE_REQUESTS):
        # [TILE_REQUESTS]
        request = first_request + tl.arange(0, TILE_REQUESTS)
        valid = request < num_requests
        query_start = tl.load(query_start_loc_ptr + request, mask=valid, other=0)
        query_len = tl.load(query_start_loc_ptr + request + 1, mask=valid, other=0) - query_start
        seq_len = tl.load(seq_lens_ptr + request, mask=valid, other=0)
        visible = seq_len - first_place(seq_len, query_len, SLIDING_WINDOW, NUM_SINKS, TILE_CONTEXT)
        tiles = tl.where(query_len >= LEAST_QUERIES, tl.cdiv(visible, TILE_CONTEXT), 0)
        tl.store(tile_starts_ptr + 1 + request, before + tl.cumsum(tiles, axis=0), mask=valid)
        before += tl.sum(tiles, axis=0)


@triton.jit
def find_context_tile(
    tile,
    tile_starts_ptr,
    seq_lens_ptr,
    query_start_loc_ptr,
    num_requests,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    TILE_CONTEXT: tl.constexpr,
):
    """The request of a tile, the positions of its tokens ``[TILE_CONTEXT]``, and which of them there are."""
    request = range_of(tile, tile_starts_ptr, num_requests)
    seq_len = tl.load(seq_lens_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - tl.load(query_start_loc_ptr + request)
    first = first_place(seq_len, query_len, SLIDING_WINDOW, NUM_SINKS, TILE_CONTEXT)
    tile_start = first + (tile - tl.load(tile_starts_ptr + request)) * TILE_CONTEXT
    tokens, valid, _ = tile_at(tile_start, first, seq_len, seq_len, NUM_SINKS, False, TILE_CONTEXT)
    return request, tokens, valid


def number_tiles(
    batch: PagedBatch,
    tile_starts: torch.Tensor,
    sliding_window: int | None,
    tile_context: int,
    num_sinks: int = 0,
    least_queries: int = 1,
) -> None:
    """Fills ``tile_starts``, int32 ``[requests + 1]``: request r gets the tiles ``tile_starts[r : r + 2]``, none where
    it has fewer queries than ``least_queries``.
    """
    number_tiles_kernel[(1,)](
        seq_lens_ptr=batch.seq_lens,
        query_start_loc_ptr=batch.query_start_loc,
        tile_starts_ptr=tile_starts,
        num_requests=batch.seq_lens.shape[0],
        SLIDING_WINDOW=sliding_window,
        NUM_SINKS=num_sinks,
        TILE_CONTEXT=tile_context,
        TILE_REQUESTS=256,
        LEAST_QUERIES=least_queries,
        num_warps=4,
    )
