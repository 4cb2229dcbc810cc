"""The work of decoding: items in the order of requests, groups, rows and tokens, each a tile of tokens for some rows.

Programs take equal ranges of items; lengths are read on the device only.
"""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.tiles.ranges import range_of

VARYING = ["num_requests", "tokens_in_batch", "num_positions", "stride_block_table_request"]  # compiled for no value


@triton.jit
def first_tile(seq_len, query_len, SLIDING_WINDOW: tl.constexpr, TILE_TOKENS: tl.constexpr):
    """The first tile of a context that one of its ``query_len`` newest tokens sees."""
    first = seq_len * 0
    if SLIDING_WINDOW is not None:
        first = tl.maximum(seq_len - query_len - SLIDING_WINDOW + 1, 0) // TILE_TOKENS
    return first


@triton.jit(do_not_specialize=VARYING)
def number_items_kernel(
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    item_starts_ptr,  # [requests + 1] int32
    num_requests,
    num_groups,
    HEADS: tl.constexpr,
    MOST_QUERIES: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_REQUESTS: tl.constexpr,
):
    """A single program: request r gets the items ``item_starts[r] : item_starts[r + 1]``, none where it has more than
    ``MOST_QUERIES`` queries.
    """
    before = tl.zeros([], tl.int32)
    tl.store(item_starts_ptr, before)
    for first_request in range(0, num_requests, TILE_REQUESTS):
        # [TILE_REQUESTS]
        request = first_request + tl.arange(0, TILE_REQUESTS)
        there = request < num_requests
        query_start = tl.load(query_start_loc_ptr + request, mask=there, other=0)
        query_len = tl.load(query_start_loc_ptr + request + 1, mask=there, other=0) - query_start
        seq_len = tl.load(seq_lens_ptr + request, mask=there, other=0)
        tiles = tl.cdiv(seq_len, TILE_TOKENS) - first_tile(seq_len, query_len, SLIDING_WINDOW, TILE_TOKENS)
        items = tiles * num_groups * tl.cdiv(query_len * HEADS, TILE_ROWS)
        items = tl.where((query_len > 0) & (query_len <= MOST_QUERIES), items, 0)
        tl.store(item_starts_ptr + 1 + request, before + tl.cumsum(items, axis=0), mask=there)
        before += tl.sum(items, axis=0)


@triton.jit
def find_item(
    item,
    item_starts_ptr,
    seq_lens_ptr,
    query_start_loc_ptr,
    num_requests,
    HEADS: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """Of an item: its request, group, first row, tile of the rows' tiles and how many these are, the first of them in
    the context, and the request's first query, queries and tokens.
    """
    request = range_of(item, item_starts_ptr, num_requests)
    token = tl.load(query_start_loc_ptr + request).to(tl.int64)
    query_len = (tl.load(query_start_loc_ptr + request + 1) - token).to(tl.int32)
    seq_len = tl.load(seq_lens_ptr + request)
    first = first_tile(seq_len, query_len, SLIDING_WINDOW, TILE_TOKENS)
    tiles = tl.cdiv(seq_len, TILE_TOKENS) - first
    place = item - tl.load(item_starts_ptr + request)
    row_tiles = tl.cdiv(query_len * HEADS, TILE_ROWS)
    group, row_tile = place // tiles // row_tiles, place // tiles % row_tiles
    return request, group, row_tile * TILE_ROWS, place % tiles, tiles, first, token, query_len, seq_len


@triton.jit
def piece_states(piece_ptr, TILE_ROWS: tl.constexpr, COLUMNS_V: tl.constexpr):
    """Where the states of pieces lie, behind their sums: ``[2 * programs, 3, TILE_ROWS]`` float32: maxima, sums of
    weights, those of the sinks' centre.
    """
    return piece_ptr + tl.num_programs(0).to(tl.int64) * (2 * TILE_ROWS * COLUMNS_V)
