"""Attention of few queries per request over codes: every program takes an equal range of the batch's items."""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.codec.steps import (
    attend_tile,
    find_rows,
    load_queries,
    nothing_seen,
    store_finished,
    store_row_numbers,
)
from palu_vllm.kernels.gpu.codec.work import VARYING, find_item, piece_states


@triton.jit(do_not_specialize=VARYING)
def decode_codes_kernel(
    query_ptr,  # [kv_heads, tokens, QUERIES_PER_KV, columns of queries] float32, in the basis of codes
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, bytes] uint8
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    item_starts_ptr,  # [requests + 1] int32
    levels_ptr,  # [128] float32
    blocks_ptr,  # [num_blocks_of_positions, FEATURES] float32
    sinks_ptr,  # None, or [num_heads] float32, in units of log 2
    means_ptr,  # [kv_heads, tokens, QUERIES_PER_KV, COLUMNS_V + 2] float32
    piece_ptr,  # float32: [2 * programs, TILE_ROWS, COLUMNS_V], not normalised, then their states, see piece_states
    num_requests, num_groups, num_positions, tokens_in_batch,
    stride_cache_block, stride_cache_group, stride_cache_slot, stride_block_table_request,
    GROUP_SIZE: tl.constexpr, QUERIES_PER_KV: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILES_K: tl.constexpr, TILES_V: tl.constexpr, COLUMNS_K: tl.constexpr, COLUMNS_V: tl.constexpr,
    FEATURES: tl.constexpr, SLIDING_WINDOW: tl.constexpr, SOFT_CAP_LOG2: tl.constexpr, DTYPE: tl.constexpr,
    TILE_TOKENS: tl.constexpr, TILE_ROWS: tl.constexpr,
):  # fmt: skip
    """One program: its range of items, those of the same rows as one loop. Rows whose items lie in one range are
    finished; of others every program writes a piece, at most two, of its first and of its last rows.
    """
    HEADS: tl.constexpr = GROUP_SIZE * QUERIES_PER_KV
    program = tl.program_id(0)
    total = tl.load(item_starts_ptr + num_requests)
    per_program = tl.cdiv(total, tl.num_programs(0))
    item = program * per_program
    end = tl.minimum(item + per_program, total)
    while item < end:
        request, group, first_row, tile, tiles, first, token, query_len, seq_len = find_item(
            item, item_starts_ptr, seq_lens_ptr, query_start_loc_ptr, num_requests, HEADS, SLIDING_WINDOW, TILE_TOKENS,
            TILE_ROWS,
        )  # fmt: skip
        count = tl.minimum(tiles - tile, end - item)
        row = first_row + tl.arange(0, TILE_ROWS)
        head, row_valid, position, place = find_rows(
            row, group, token, query_len, seq_len, tokens_in_batch, GROUP_SIZE, QUERIES_PER_KV
        )
        row_ptrs = query_ptr + place * (COLUMNS_K + FEATURES + 1)
        sink_score = tl.load(row_ptrs + (COLUMNS_K + FEATURES), mask=row_valid, other=0.0)
        queries = load_queries(row_ptrs, row_valid, DTYPE, TILES_K)
        state = nothing_seen(TILE_ROWS, TILES_V)
        start = (first + tile) * TILE_TOKENS
        table_row_ptr = block_table_ptr + request * stride_block_table_request
        group_ptr = cache_ptr + group.to(tl.int64) * stride_cache_group
        # what does not change in the loop is not kept in registers, which are all needed within
        for tile_start in tl.range(start, start + count * TILE_TOKENS, TILE_TOKENS, disable_licm=True):
            state = attend_tile(
                state=state, queries=queries, row_ptrs=row_ptrs, row_valid=row_valid, position=position,
                sink_score=sink_score, tile_start=tile_start, table_row_ptr=table_row_ptr, group_ptr=group_ptr,
                levels_ptr=levels_ptr, blocks_ptr=blocks_ptr, num_blocks=num_positions, seq_len=seq_len,
                stride_cache_block=stride_cache_block, stride_cache_slot=stride_cache_slot, dtype=DTYPE,
                BLOCK_SIZE=BLOCK_SIZE, TILES_K=TILES_K, TILES_V=TILES_V, FEATURES_START=COLUMNS_K, FEATURES=FEATURES,
                SLIDING_WINDOW=SLIDING_WINDOW, SOFT_CAP_LOG2=SOFT_CAP_LOG2, TILE_TOKENS=TILE_TOKENS,
            )  # fmt: skip
        if count == tiles:
            sink_ptrs = None
            if sinks_ptr is not None:
                sink_ptrs = sinks_ptr + group * HEADS + head
            store_finished(state, means_ptr + place * (COLUMNS_V + 2), row_valid, sink_ptrs, TILES_V, COLUMNS_V)
        else:
            piece = (2 * program + (tile == 0).to(tl.int32)).to(tl.int64)
            rows_of_piece = piece * TILE_ROWS + tl.arange(0, TILE_ROWS)
            store_row_numbers(state[0], piece_ptr + rows_of_piece * COLUMNS_V, row_valid, TILES_V)
            states_ptr = piece_states(piece_ptr, TILE_ROWS, COLUMNS_V)
            state_ptrs = states_ptr + piece * (3 * TILE_ROWS) + tl.arange(0, TILE_ROWS)
            tl.store(state_ptrs, state[1])
            tl.store(state_ptrs + TILE_ROWS, state[2])
            tl.store(state_ptrs + 2 * TILE_ROWS, state[3])
        item += count
