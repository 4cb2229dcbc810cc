"""What the queries of a request see of its context: all of it, a window, or sinks and a window.

Tiles of a context lie at places. A token of a window is at the place of its position; sinks fill whole tiles of their
own right before the first token of the window, so that tiles follow each other, a tile is sinks or window, and what
lies between them is not worked through. Without sinks, places are positions.
"""

import triton
import triton.language as tl


@triton.jit
def first_of_window(seq_len, query_len, SLIDING_WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr):
    """The position of the first token that any query of a request sees, sinks apart."""
    first = seq_len * 0
    if SLIDING_WINDOW is not None:
        first = tl.maximum(seq_len - query_len - SLIDING_WINDOW + 1, NUM_SINKS)
    return first


@triton.jit
def first_place(seq_len, query_len, SLIDING_WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, TILE: tl.constexpr):
    """Where what the queries of a request see begins, in tiles of ``TILE`` tokens."""
    PADDED: tl.constexpr = (NUM_SINKS + TILE - 1) // TILE * TILE
    return first_of_window(seq_len, query_len, SLIDING_WINDOW, NUM_SINKS) - PADDED


@triton.jit
def tile_at(tile_start, first, stop, seq_len, NUM_SINKS: tl.constexpr, SHIFT_SINKS: tl.constexpr, TILE: tl.constexpr):
    """Of the tile at ``tile_start``: positions ``[TILE]``, which of them are there, and where the only query of the
    request meets the first of them.

    ``first`` is ``first_place``, ``stop`` the end of what is worked through; at tiles of sinks, that of the sinks.
    """
    PADDED: tl.constexpr = (NUM_SINKS + TILE - 1) // TILE * TILE
    start = tile_start
    met_at = tile_start
    if NUM_SINKS > 0:
        of_sinks = tile_start < first + PADDED
        start = tl.where(of_sinks, tile_start - first, tile_start)
        stop = tl.where(of_sinks, tl.minimum(seq_len, NUM_SINKS), stop)
        met_at = start
        if SHIFT_SINKS:
            met_at = tl.where(of_sinks, start + (first + PADDED - NUM_SINKS), start)
    tokens = start + tl.arange(0, TILE)
    return tokens, tokens < stop, met_at


@triton.jit
def within_window(distance, tokens, SLIDING_WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr):
    """Whether a query sees ``tokens``, ``distance`` before it and none behind it."""
    seen = distance >= 0
    if SLIDING_WINDOW is not None:
        near = distance < SLIDING_WINDOW
        if NUM_SINKS > 0:
            near |= tokens < NUM_SINKS
        seen &= near
    return seen


@triton.jit
def turned_back(
    queries,  # [TILE_ROWS, TILE_DIM], rotated
    query_ptrs,  # [TILE_ROWS] pointers to the rows of ``queries``
    row_valid,  # [TILE_ROWS]
    distance,  # [TILE_ROWS]
    cos_sin_ptr,  # [max_position, ROTARY_DIM] float32
    ROTARY_DIM: tl.constexpr,
):
    """``queries`` as if each were ``distance`` tokens earlier, float32."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    dim = tl.arange(0, queries.shape[1])
    is_first = dim < HALF
    pair = dim % HALF
    mask = row_valid[:, None] & (dim < ROTARY_DIM)[None, :]
    # [TILE_ROWS, TILE_DIM]
    other = tl.load(query_ptrs[:, None] + tl.where(is_first, dim + HALF, dim - HALF)[None, :], mask=mask, other=0.0)
    table_ptrs = cos_sin_ptr + distance.to(tl.int64)[:, None] * ROTARY_DIM + pair[None, :]
    cos = tl.load(table_ptrs, mask=mask, other=1.0)
    sin = tl.load(table_ptrs + HALF, mask=mask, other=0.0) * tl.where(is_first, 1.0, -1.0)[None, :]
    length = tl.load(cos_sin_ptr + pair, mask=dim < ROTARY_DIM, other=1.0)  # of a table with a factor (yarn's) not 1
    return (queries.to(tl.float32) * cos + other.to(tl.float32) * sin) / length[None, :]
