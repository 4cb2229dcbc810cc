"""Attention of many queries per request over codes, causal: one program per rows of a request and group."""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.codec.steps import attend_tile, find_rows, load_queries, nothing_seen, store_finished
from palu_vllm.kernels.gpu.codec.work import VARYING, first_tile


@triton.jit(do_not_specialize=VARYING)
def prefill_codes_kernel(
    query_ptr,  # [kv_heads, tokens, QUERIES_PER_KV, columns of queries] float32, in the basis of codes
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, bytes] uint8
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    levels_ptr,  # [128] float32
    blocks_ptr,  # [num_blocks_of_positions, FEATURES] float32
    sinks_ptr,  # None, or [num_heads] float32, in units of log 2
    means_ptr,  # [kv_heads, tokens, QUERIES_PER_KV, COLUMNS_V + 2] float32
    num_positions, tokens_in_batch,
    stride_cache_block, stride_cache_group, stride_cache_slot, stride_block_table_request,
    LEAST_QUERIES: tl.constexpr,
    GROUP_SIZE: tl.constexpr, QUERIES_PER_KV: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILES_K: tl.constexpr, TILES_V: tl.constexpr, COLUMNS_K: tl.constexpr, COLUMNS_V: tl.constexpr,
    FEATURES: tl.constexpr, SLIDING_WINDOW: tl.constexpr, SOFT_CAP_LOG2: tl.constexpr, DTYPE: tl.constexpr,
    TILE_TOKENS: tl.constexpr, TILE_ROWS: tl.constexpr,
):  # fmt: skip
    """One program: rows of one group of a request that has ``LEAST_QUERIES`` at least. The last rows, whose contexts
    are the longest, come first.
    """
    HEADS: tl.constexpr = GROUP_SIZE * QUERIES_PER_KV
    row_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    group, request = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.load(query_start_loc_ptr + request).to(tl.int64)
    query_len = (tl.load(query_start_loc_ptr + request + 1) - token).to(tl.int32)
    first_query = row_tile * TILE_ROWS // HEADS
    if (query_len < LEAST_QUERIES) | (first_query >= query_len):
        return
    seq_len = tl.load(seq_lens_ptr + request)
    row = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    head, row_valid, position, place = find_rows(
        row, group, token, query_len, seq_len, tokens_in_batch, GROUP_SIZE, QUERIES_PER_KV
    )
    row_ptrs = query_ptr + place * (COLUMNS_K + FEATURES + 1)
    sink_score = tl.load(row_ptrs + (COLUMNS_K + FEATURES), mask=row_valid, other=0.0)
    queries = load_queries(row_ptrs, row_valid, DTYPE, TILES_K)
    state = nothing_seen(TILE_ROWS, TILES_V)
    last_query = tl.minimum((row_tile * TILE_ROWS + TILE_ROWS - 1) // HEADS, query_len - 1)
    stop = seq_len - query_len + last_query + 1
    start = first_tile(seq_len, query_len - first_query, SLIDING_WINDOW, TILE_TOKENS) * TILE_TOKENS
    table_row_ptr = block_table_ptr + request * stride_block_table_request
    group_ptr = cache_ptr + group.to(tl.int64) * stride_cache_group
    for tile_start in tl.range(start, stop, TILE_TOKENS, disable_licm=True):
        state = attend_tile(
            state=state, queries=queries, row_ptrs=row_ptrs, row_valid=row_valid, position=position,
            sink_score=sink_score, tile_start=tile_start, table_row_ptr=table_row_ptr, group_ptr=group_ptr,
            levels_ptr=levels_ptr, blocks_ptr=blocks_ptr, num_blocks=num_positions, seq_len=stop,
            stride_cache_block=stride_cache_block, stride_cache_slot=stride_cache_slot, dtype=DTYPE,
            BLOCK_SIZE=BLOCK_SIZE, TILES_K=TILES_K, TILES_V=TILES_V, FEATURES_START=COLUMNS_K, FEATURES=FEATURES,
            SLIDING_WINDOW=SLIDING_WINDOW, SOFT_CAP_LOG2=SOFT_CAP_LOG2, TILE_TOKENS=TILE_TOKENS,
        )  # fmt: skip
    sink_ptrs = None
    if sinks_ptr is not None:
        sink_ptrs = sinks_ptr + group * HEADS + head
    store_finished(state, means_ptr + place * (COLUMNS_V + 2), row_valid, sink_ptrs, TILES_V, COLUMNS_V)
