"""Attention of many queries per request over latents, those of the queries themselves included.

Everything is read from the cache, also what this step has written, so that chunks, cached prefixes and whole
prompts give the same result (Palu, section 3.2 and equation 3). Pass by pass, ``rebuild_keys`` fills a workspace, over
which this is flash attention with values of ``rank_v`` numbers.
"""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.prefill.rebuild_keys import VARYING
from palu_vllm.kernels.gpu.tiles.flash_steps import (
    add_values,
    capped,
    carried_values,
    divided,
    softmax_step,
    store_values,
)
from palu_vllm.kernels.windows import first_place, turned_back, within_window


@triton.jit
def find_query_tile(query_start_loc_ptr, query_tile, num_requests, TILE_QUERIES: tl.constexpr):
    """The request of a tile, and the first query of the tile counted from the first query of the request.

    Request r owns the tiles from ``query_start_loc[r] // TILE_QUERIES + r``: enough for its queries, at most one
    to spare, and known without reading the lengths on the host.
    """
    low = tl.zeros([], tl.int64)
    high = low + num_requests - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(query_start_loc_ptr + middle) // TILE_QUERIES + middle <= query_tile:
            low = middle
        else:
            high = middle - 1
    first_tile = tl.load(query_start_loc_ptr + low) // TILE_QUERIES + low
    return low, ((query_tile - first_tile) * TILE_QUERIES).to(tl.int32)


@triton.jit
def seen_in_pass(
    tile_start,  # the first tile of the request
    first,  # the place where its context begins
    start,  # the first place that a tile of queries sees
    stop,
    first_tile,
    tiles,
    TILE_CONTEXT: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
):
    """Places ``[start, stop)`` cut to those of the pass, from the beginning of a step on, and what to add to a place
    for its row of the workspace.
    """
    to_row = (tile_start - first_tile) * TILE_CONTEXT - first
    start = first + (start - first) // TILE_TOKENS * TILE_TOKENS
    return start, tl.maximum(start, -to_row), tl.minimum(stop, tiles * TILE_CONTEXT - to_row), to_row


@triton.jit
def attend_to(
    accumulated,  # tuple of [TILE_ROWS, TILE_VALUES] float32
    running_max,  # [TILE_ROWS] float32
    running_sum,  # [TILE_ROWS] float32
    start,  # places, of whole steps
    stop,
    to_row,  # what to add to a place for its row of the workspace
    to_position,  # and for its position
    queries,  # [TILE_ROWS, 2 * TILE_HALF]
    position,  # [TILE_ROWS] of the queries
    scale_log2,
    key_ptr,  # [tokens of the workspace, HEAD_DIM]
    value_ptr,  # [tokens of the workspace, RANK_V]
    columns,  # [TILE_VALUES] of the latent values, those of the first tile
    HEAD_DIM: tl.constexpr,
    RANK_V: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    SOFT_CAP_LOG2: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
):
    """Flash attention to a part of the workspace: the next sums of values, maxima and sums of weights."""
    step, dim = tl.arange(0, TILE_TOKENS), tl.arange(0, queries.shape[1])
    for place in range(start, stop, TILE_TOKENS):
        tokens = to_position + place + tl.arange(0, TILE_TOKENS)
        first_row = (to_row + place).to(tl.int64)
        # [TILE_TOKENS, 2 * TILE_HALF]
        key_ptrs = key_ptr + first_row * HEAD_DIM + (step[:, None] * HEAD_DIM + dim[None, :])
        keys = tl.load(key_ptrs, mask=(dim < HEAD_DIM)[None, :], other=0.0)
        # [TILE_ROWS, TILE_TOKENS]
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale_log2
        visible = within_window(position[:, None] - tokens[None, :], tokens[None, :], SLIDING_WINDOW, NUM_SINKS)
        scores = tl.where(visible, capped(scores, SOFT_CAP_LOG2), float("-inf"))
        probabilities, correction, running_max, running_sum = softmax_step(scores, running_max, running_sum)
        value_ptrs = value_ptr + first_row * RANK_V
        accumulated = add_values(accumulated, correction, probabilities, value_ptrs, step * RANK_V, columns, RANK_V)
    return accumulated, running_max, running_sum


@triton.jit(do_not_specialize=[*VARYING, "tiles", "kv_heads_of_pass", "num_queries"])
def prefill_kernel(
    query_ptr,  # [tokens, num_heads, HEAD_DIM], rotated
    key_ptr,  # [KV heads of the pass, tiles * TILE_CONTEXT, HEAD_DIM], rotated
    value_ptr,  # [groups of V of the pass, tiles * TILE_CONTEXT, RANK_V]
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    tile_starts_ptr,  # [requests + 1] int32
    cos_sin_ptr,  # None without sinks that are shifted, or [max_position, ROTARY_DIM] float32
    sinks_ptr,  # None, or [num_heads] float32: scores of no token, in units of log 2
    out_ptr,  # [tokens, num_heads, RANK_V]
    carried_ptr,  # None, or [tokens, heads of the pass, RANK_V] float32, not normalised
    carried_max_ptr,  # None, or [programs for values, tokens, heads of the pass] float32, in units of log 2
    carried_sum_ptr,  # None, or [programs for values, tokens, heads of the pass] float32
    stride_query_token, stride_query_head, stride_out_token, stride_out_head,
    scale_log2,  # scale / ln 2, with a soft cap twice that over the cap
    num_requests,
    num_queries,
    first_group,
    kv_heads_of_pass,
    first_tile,
    tiles,
    GROUP_SIZE: tl.constexpr, GROUP_SIZE_V: tl.constexpr, QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, RANK_V: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, SHIFT_SINKS: tl.constexpr,
    TILE_CONTEXT: tl.constexpr, TILE_HALF: tl.constexpr, TILE_ROWS: tl.constexpr,
    TILE_TOKENS: tl.constexpr, TILE_VALUES: tl.constexpr, VALUE_TILES: tl.constexpr,
    SOFT_CAP_LOG2: tl.constexpr, LEAST_QUERIES: tl.constexpr,
):  # fmt: skip
    """One program: some queries of all heads of one KV head, for some tiles of the latent value, over one pass.

    Requests of fewer than ``LEAST_QUERIES`` are left alone.
    """
    TILE_QUERIES: tl.constexpr = TILE_ROWS // QUERIES_PER_KV
    query_tile = tl.num_programs(0) - 1 - tl.program_id(0)  # those that see most first
    request, first_query = find_query_tile(query_start_loc_ptr, query_tile, num_requests, TILE_QUERIES)
    query_start = tl.load(query_start_loc_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - query_start
    if (first_query >= query_len) | (query_len < LEAST_QUERIES):
        return
    seq_len = tl.load(seq_lens_ptr + request)
    cached = seq_len - query_len
    first = first_place(seq_len, query_len, SLIDING_WINDOW, NUM_SINKS, TILE_CONTEXT)
    stop = cached + tl.minimum(first_query + TILE_QUERIES, query_len)
    start = 0 if SLIDING_WINDOW is None else tl.maximum(cached + first_query - SLIDING_WINDOW + 1, NUM_SINKS)
    tile_start = tl.load(tile_starts_ptr + request)
    start, pass_start, pass_stop, to_row = seen_in_pass(
        tile_start, first, start, stop, first_tile, tiles, TILE_CONTEXT, TILE_TOKENS
    )
    begin, end, sinks_start, sinks_stop = start, stop, 0, 0
    if NUM_SINKS > 0:
        begin, end = first, tl.where(stop > NUM_SINKS, stop, first + stop)
        sinks_start = tl.maximum(first, -to_row)
        sinks_stop = tl.minimum(first + tl.minimum(stop, NUM_SINKS), tiles * TILE_CONTEXT - to_row)
    if (pass_start >= pass_stop) & (sinks_start >= sinks_stop):
        return

    kv_head = tl.program_id(1) % kv_heads_of_pass
    values_of_program = tl.program_id(1) // kv_heads_of_pass
    # [TILE_ROWS]
    row = tl.arange(0, TILE_ROWS)
    query = first_query + row // QUERIES_PER_KV
    row_valid = (row // QUERIES_PER_KV < TILE_QUERIES) & (query < query_len)
    token = query_start + query
    head_of_pass = kv_head * QUERIES_PER_KV + row % QUERIES_PER_KV
    head = first_group * (GROUP_SIZE * QUERIES_PER_KV) + head_of_pass
    dim = tl.arange(0, 2 * TILE_HALF)
    query_ptrs = query_ptr + token.to(tl.int64) * stride_query_token + head * stride_query_head
    # [TILE_ROWS, 2 * TILE_HALF]
    mask = row_valid[:, None] & (dim < HEAD_DIM)[None, :]
    queries = tl.load(query_ptrs[:, None] + dim[None, :], mask=mask, other=0.0)

    columns = values_of_program * (TILE_VALUES * VALUE_TILES) + tl.arange(0, TILE_VALUES)
    carried_row = token * (kv_heads_of_pass * QUERIES_PER_KV) + head_of_pass
    state_row = values_of_program * (num_queries * kv_heads_of_pass * QUERIES_PER_KV) + carried_row
    row_carried = row_valid & (query < tl.where(-to_row > begin, query_len, 0))
    running_max = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    running_sum = tl.zeros([TILE_ROWS], tl.float32)
    if carried_ptr is not None:
        running_max = tl.load(carried_max_ptr + state_row, mask=row_carried, other=float("-inf"))
        running_sum = tl.load(carried_sum_ptr + state_row, mask=row_carried, other=0.0)
    accumulated = carried_values(carried_ptr, carried_row, row_carried, columns, RANK_V, VALUE_TILES)
    dtype = key_ptr.dtype.element_ty
    position, workspace_tokens = cached + query, tiles * TILE_CONTEXT
    key_head_ptr = key_ptr + kv_head.to(tl.int64) * workspace_tokens * HEAD_DIM
    value_group_ptr = value_ptr + (kv_head // GROUP_SIZE_V).to(tl.int64) * workspace_tokens * RANK_V
    if NUM_SINKS > 0:
        before_sinks = queries
        if SHIFT_SINKS:
            distance = tl.maximum(position + 1 - NUM_SINKS - SLIDING_WINDOW, 0)
            before_sinks = turned_back(queries, query_ptrs, row_valid, distance, cos_sin_ptr, ROTARY_DIM)
        accumulated, running_max, running_sum = attend_to(
            accumulated=accumulated, running_max=running_max, running_sum=running_sum, start=sinks_start,
            stop=sinks_stop, to_row=to_row, to_position=-first, queries=before_sinks.to(dtype), position=position,
            scale_log2=scale_log2, key_ptr=key_head_ptr, value_ptr=value_group_ptr, columns=columns, HEAD_DIM=HEAD_DIM,
            RANK_V=RANK_V, SLIDING_WINDOW=0, NUM_SINKS=NUM_SINKS, SOFT_CAP_LOG2=SOFT_CAP_LOG2, TILE_TOKENS=TILE_TOKENS,
        )  # fmt: skip
    accumulated, running_max, running_sum = attend_to(
        accumulated=accumulated, running_max=running_max, running_sum=running_sum, start=pass_start, stop=pass_stop,
        to_row=to_row, to_position=0, queries=queries.to(dtype), position=position, scale_log2=scale_log2,
        key_ptr=key_head_ptr, value_ptr=value_group_ptr, columns=columns, HEAD_DIM=HEAD_DIM, RANK_V=RANK_V,
        SLIDING_WINDOW=SLIDING_WINDOW, NUM_SINKS=0, SOFT_CAP_LOG2=SOFT_CAP_LOG2, TILE_TOKENS=TILE_TOKENS,
    )  # fmt: skip

    if carried_ptr is not None:
        carried_row_ptrs = carried_ptr + carried_row.to(tl.int64) * RANK_V
        if workspace_tokens - to_row < end:
            tl.store(carried_max_ptr + state_row, running_max, mask=row_valid)
            tl.store(carried_sum_ptr + state_row, running_sum, mask=row_valid)
            store_values(accumulated, carried_row_ptrs, row_valid, columns, RANK_V)
            return
    if sinks_ptr is not None:
        running_sum += tl.exp2(tl.load(sinks_ptr + head) - running_max)
    sums = tl.where(row_valid, running_sum, 1.0)  # a row of padding has seen nothing
    out_row_ptrs = out_ptr + token.to(tl.int64) * stride_out_token + head * stride_out_head
    store_values(divided(accumulated, sums), out_row_ptrs, row_valid, columns, RANK_V)
