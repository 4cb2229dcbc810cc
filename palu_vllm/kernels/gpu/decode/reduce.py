"""Joins the splits of a context, and says what the splits are."""

import triton
import triton.language as tl

from palu_vllm.kernels.windows import first_place

V_UP_COLUMNS = 16  # of one product with v_up, all of whose ranks are in the registers of 4 warps


@triton.jit
def split_bounds(
    seq_len,
    query_len,
    split,
    num_splits,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
):
    """The place where the context begins, and places ``[start, stop)`` of one split: whole tiles of sinks and of what
    the window of the first query leaves; empty past the last tile.
    """
    first = first_place(seq_len, query_len, SLIDING_WINDOW, NUM_SINKS, TILE_TOKENS)
    tiles_per_split = tl.cdiv(tl.cdiv(seq_len - first, TILE_TOKENS), num_splits)
    start = first + split * tiles_per_split * TILE_TOKENS
    return first, start, tl.minimum(start + tiles_per_split * TILE_TOKENS, seq_len)


@triton.jit
def store_values(
    latent,  # [TILE_VALUES] float32
    columns,  # [TILE_VALUES]
    up_ptr,  # the columns of v_up of one KV head
    stride_v_up_rank,
    out_row_ptr,
    HEAD_DIM: tl.constexpr,
    RANK_V: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """``latent @ v_up`` of one head, some columns at a time."""
    row_ptrs = up_ptr + columns[:, None] * stride_v_up_rank
    for start in range(0, HEAD_DIM, TILE_COLUMNS):
        dim = start + tl.arange(0, TILE_COLUMNS)
        # [TILE_VALUES, TILE_COLUMNS]
        mask = (columns < RANK_V)[:, None] & (dim < HEAD_DIM)[None, :]
        up = tl.load(row_ptrs + dim[None, :], mask=mask, other=0.0).to(tl.float32)
        values = tl.sum(latent[:, None] * up, axis=0)
        tl.store(out_row_ptr + dim, values.to(out_row_ptr.dtype.element_ty), mask=dim < HEAD_DIM)


@triton.jit
def decode_reduce_kernel(
    partial_ptr,  # [requests, num_splits, queries, num_heads, RANK_V] float32
    partial_max_ptr,  # [requests, num_splits, queries, num_heads] float32
    partial_sum_ptr,  # [requests, num_splits, queries, num_heads] float32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    v_up_ptr,  # None, or [num_groups_v, RANK_V, GROUP_SIZE_V * HEAD_DIM]
    out_ptr,  # [tokens, num_heads, RANK_V], with v_up [tokens, num_heads, HEAD_DIM]
    stride_out_token,
    stride_out_head,
    stride_v_up_group,
    stride_v_up_rank,
    num_splits,
    GROUP_SIZE_V: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    RANK_V: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_VALUES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """One program: joins the splits of one query of one head of one request, and multiplies them with ``v_up``."""
    request, head, query = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    num_heads, queries = tl.num_programs(1), tl.num_programs(2)
    token = tl.load(query_start_loc_ptr + request).to(tl.int64)
    query_len = (tl.load(query_start_loc_ptr + request + 1) - token).to(tl.int32)
    if query >= query_len:
        return
    seq_len = tl.load(seq_lens_ptr + request)
    # [TILE_VALUES]
    columns = tl.arange(0, TILE_VALUES)
    accumulated = tl.zeros([TILE_VALUES], tl.float32)
    running_max = float("-inf")
    running_sum = 0.0
    for split in range(num_splits):
        _, start, stop = split_bounds(seq_len, query_len, split, num_splits, SLIDING_WINDOW, NUM_SINKS, TILE_TOKENS)
        if start < stop:
            partial_row = ((request * num_splits + split) * queries + query) * num_heads + head
            partial_max = tl.load(partial_max_ptr + partial_row)
            partial = tl.load(partial_ptr + partial_row * RANK_V + columns, mask=columns < RANK_V, other=0.0)
            new_max = tl.maximum(running_max, partial_max)
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)  # the query has seen nothing so far
            old, new = tl.exp2(running_max - shift), tl.exp2(partial_max - shift)
            accumulated = accumulated * old + partial * new
            running_sum = running_sum * old + tl.load(partial_sum_ptr + partial_row) * new
            running_max = new_max
    out_row_ptr = out_ptr + (token + query) * stride_out_token + head * stride_out_head
    latent = accumulated / running_sum
    if v_up_ptr is None:
        tl.store(out_row_ptr + columns, latent.to(out_ptr.dtype.element_ty), mask=columns < RANK_V)
    else:
        kv_head = (head // QUERIES_PER_KV).to(tl.int64)
        up_ptr = v_up_ptr + kv_head // GROUP_SIZE_V * stride_v_up_group + kv_head % GROUP_SIZE_V * HEAD_DIM
        store_values(latent, columns, up_ptr, stride_v_up_rank, out_row_ptr, HEAD_DIM, RANK_V, TILE_COLUMNS)
