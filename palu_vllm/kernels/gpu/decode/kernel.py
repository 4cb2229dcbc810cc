"""Attention of few queries per request over latents, split over the context (Palu, section 3.2 and equation 3)."""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.decode.absorbed import absorbed_scores
from palu_vllm.kernels.gpu.decode.rebuilt import load_query_tiles, rebuilt_scores
from palu_vllm.kernels.gpu.decode.reduce import split_bounds
from palu_vllm.kernels.gpu.tiles.keys import (
    add_values,
    latent_offset,
    load_latent,
    no_values,
    slot_offsets,
    softmax_step,
)
from palu_vllm.kernels.windows import tile_at, within_window


@triton.jit
def visible_to(position, tokens, valid, SLIDING_WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, QUERIES: tl.constexpr):
    """Which ``tokens [TILE_TOKENS]`` a row at ``position [TILE_ROWS]`` sees; a single query sees all of its split."""
    visible = valid[:, None]
    if QUERIES > 1:
        distance = position[None, :] - tokens[:, None]
        visible &= within_window(distance, tokens[:, None], SLIDING_WINDOW, NUM_SINKS)
    return visible


@triton.jit
def store_sums(accumulated, row_ptrs, row_valid, columns, RANK_V: tl.constexpr):
    """Tiles of sums of values ``[TILE_VALUES, TILE_ROWS]`` to the rows ``row_ptrs``."""
    for index in tl.static_range(len(accumulated)):
        column = columns + index * columns.shape[0]
        mask = (column < RANK_V)[:, None] & row_valid[None, :]
        tl.store(row_ptrs[None, :] + column[:, None], accumulated[index], mask=mask)


@triton.jit
def decode_split_kernel(
    query_ptr,  # [tokens, num_heads, HEAD_DIM], rotated
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, slot_width], numbers or bytes
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    k_up_ptr,  # None, or [num_groups_k, RANK_K, GROUP_SIZE_K * HEAD_DIM]
    k_bias_ptr,  # None, or [num_kv_heads * HEAD_DIM]
    k_norm_ptr,  # None, or [HEAD_DIM]
    cos_sin_ptr,  # [max_position, ROTARY_DIM] float32
    basis_ptr,  # None, or [TERMS, TILE_TOKENS] float32
    coefficients_ptr,  # None, or [2, TERMS, HEAD_DIM // 2 - FAST] float32
    partial_ptr,  # [requests, num_splits, QUERIES, num_heads, RANK_V] float32, not normalised
    partial_max_ptr,  # [requests, num_splits, QUERIES, num_heads] float32, in units of log 2
    partial_sum_ptr,  # [requests, num_splits, QUERIES, num_heads] float32
    stride_query_token, stride_query_head, stride_cache_block, stride_cache_group, stride_cache_slot,
    stride_block_table_request, stride_k_up_group, stride_k_up_rank,
    scale_log2,  # scale / ln 2
    k_norm_eps,
    num_groups,
    GROUP_SIZE: tl.constexpr, GROUP_SIZE_K: tl.constexpr, GROUP_SIZE_V: tl.constexpr, PARTS: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr,
    RANK_K: tl.constexpr, RANK_V: tl.constexpr, FORMAT_K: tl.constexpr, FORMAT_V: tl.constexpr,
    KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_START: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, SHIFT_SINKS: tl.constexpr,
    QUERIES: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_RANK: tl.constexpr, TILE_HALF: tl.constexpr,
    HALF_TILES: tl.constexpr, TILE_SLOW: tl.constexpr, TERMS: tl.constexpr, TILE_ROWS: tl.constexpr,
    ROWS_PER_KV: tl.constexpr, TILE_VALUES: tl.constexpr, VALUE_TILES: tl.constexpr,
):  # fmt: skip
    """One program: some heads of a group of one request over one split, for some tiles of the latent value. All of them
    have the same key latent and the same value latent.
    """
    KV_HEADS: tl.constexpr = GROUP_SIZE // PARTS
    HEADS: tl.constexpr = KV_HEADS * QUERIES_PER_KV
    FAST: tl.constexpr = TILE_HALF * HALF_TILES  # pairs that are rebuilt: all, or those that are not absorbed
    request = tl.program_id(0).to(tl.int64)
    part = (tl.program_id(1) % (num_groups * PARTS)).to(tl.int64)  # those of a group are neighbours
    group, first_kv_head = part // PARTS, part * KV_HEADS
    values_of_program = tl.program_id(1) // (num_groups * PARTS)
    split, num_splits = tl.program_id(2), tl.num_programs(2)
    seq_len = tl.load(seq_lens_ptr + request)
    token = tl.load(query_start_loc_ptr + request).to(tl.int64)
    query_len = (tl.load(query_start_loc_ptr + request + 1) - token).to(tl.int32)
    first, start, stop = split_bounds(seq_len, query_len, split, num_splits, SLIDING_WINDOW, NUM_SINKS, TILE_TOKENS)
    if (query_len == 0) | (start >= stop):
        return

    # [TILE_ROWS]
    row = tl.arange(0, TILE_ROWS)
    head_of_row, query = row // ROWS_PER_KV, row % ROWS_PER_KV // QUERIES_PER_KV
    head = head_of_row * QUERIES_PER_KV + row % ROWS_PER_KV % QUERIES_PER_KV
    row_valid = (head_of_row < KV_HEADS) & (query < query_len)
    position = seq_len - query_len + query
    part_query_ptr = query_ptr + token * stride_query_token + part * HEADS * stride_query_head
    row_ptrs = part_query_ptr + query * stride_query_token + head * stride_query_head
    dtype = cache_ptr.dtype.element_ty if FORMAT_K is None else query_ptr.dtype.element_ty
    query_tiles = load_query_tiles(row_ptrs, row_valid, dtype, HEAD_DIM, ROTARY_DIM, TILE_HALF, HALF_TILES)
    columns = values_of_program * (TILE_VALUES * VALUE_TILES) + tl.arange(0, TILE_VALUES)
    accumulated = no_values(TILE_VALUES, TILE_ROWS, VALUE_TILES)
    running_max = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    running_sum = tl.zeros([TILE_ROWS], tl.float32)
    table_row_ptr = block_table_ptr + request * stride_block_table_request
    to_key = latent_offset(first_kv_head, GROUP_SIZE, GROUP_SIZE_K, KEY_WIDTH)
    key_to_value = VALUE_START + latent_offset(first_kv_head, GROUP_SIZE, GROUP_SIZE_V, VALUE_WIDTH) - to_key
    group_ptr = cache_ptr + group * stride_cache_group + to_key
    bias_ptr = k_bias_ptr
    if k_bias_ptr is not None:
        bias_ptr += first_kv_head * HEAD_DIM
    if FORMAT_K is not None:
        tokens, valid, _ = tile_at(start, first, stop, seq_len, NUM_SINKS, SHIFT_SINKS, TILE_TOKENS)
        slots = slot_offsets(table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
        latent = load_latent(group_ptr + slots, valid, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)
    # what does not change in the loop is not kept in registers, which are all needed within
    for tile_start in tl.range(start, stop, TILE_TOKENS, disable_licm=True):
        tokens, valid, met_at = tile_at(tile_start, first, stop, seq_len, NUM_SINKS, SHIFT_SINKS, TILE_TOKENS)
        slots = slot_offsets(table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
        slot_ptrs = group_ptr + slots
        if FORMAT_K is None:
            latent = load_latent(slot_ptrs, valid, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)
        # [TILE_TOKENS, TILE_ROWS]
        scores = rebuilt_scores(
            latent=latent, query_tiles=query_tiles, slot_ptrs=slot_ptrs, tokens=met_at + tl.arange(0, TILE_TOKENS),
            valid=valid, head_of_row=head_of_row, k_up_ptr=k_up_ptr, stride_k_up_group=stride_k_up_group,
            stride_k_up_rank=stride_k_up_rank, k_bias_ptr=k_bias_ptr, k_norm_ptr=k_norm_ptr, k_norm_eps=k_norm_eps,
            cos_sin_ptr=cos_sin_ptr, first_kv_head=first_kv_head, GROUP_SIZE_K=GROUP_SIZE_K, KV_HEADS=KV_HEADS,
            HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM, RANK_K=RANK_K, FORMAT_K=FORMAT_K, TILE_RANK=TILE_RANK,
            TILE_HALF=TILE_HALF,
        )  # fmt: skip
        if coefficients_ptr is not None:
            key_group = first_kv_head // GROUP_SIZE_K
            up_ptr = k_up_ptr + key_group * stride_k_up_group + first_kv_head % GROUP_SIZE_K * HEAD_DIM
            scores += absorbed_scores(
                latent=latent, slot_ptrs=slot_ptrs, valid=valid, up_ptr=up_ptr, stride_k_up_rank=stride_k_up_rank,
                bias_ptr=bias_ptr, query_ptr=part_query_ptr, stride_query_token=stride_query_token,
                stride_query_head=stride_query_head, query_len=query_len, position=met_at, cos_sin_ptr=cos_sin_ptr,
                basis_ptr=basis_ptr, coefficients_ptr=coefficients_ptr, GROUP_SIZE=KV_HEADS,
                QUERIES_PER_KV=QUERIES_PER_KV, HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM, RANK_K=RANK_K,
                FORMAT_K=FORMAT_K, FAST=FAST, TILE_SLOW=TILE_SLOW, TERMS=TERMS, ROWS_PER_KV=ROWS_PER_KV,
                TILE_ROWS=TILE_ROWS,
            )  # fmt: skip
        visible = visible_to(position, tokens, valid, SLIDING_WINDOW, NUM_SINKS, QUERIES)
        scores = tl.where(visible, scores * scale_log2, float("-inf"))
        probabilities, correction, running_max, running_sum = softmax_step(scores, running_max, running_sum)
        accumulated = add_values(
            accumulated, correction, probabilities, slot_ptrs + key_to_value, valid, columns, dtype, RANK_V, FORMAT_V
        )
        if FORMAT_K is not None:
            tile_end = tile_start + TILE_TOKENS
            ahead, valid, _ = tile_at(tile_end, first, stop, seq_len, NUM_SINKS, SHIFT_SINKS, TILE_TOKENS)
            slots = slot_offsets(table_row_ptr, ahead, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
            latent = load_latent(group_ptr + slots, valid, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)

    partial_row = (
        ((request * num_splits + split) * QUERIES + query) * (num_groups * PARTS * HEADS) + part * HEADS + head
    )
    if values_of_program == 0:
        tl.store(partial_max_ptr + partial_row, running_max, mask=row_valid)
        tl.store(partial_sum_ptr + partial_row, running_sum, mask=row_valid)
    store_sums(accumulated, partial_ptr + partial_row * RANK_V, row_valid, columns, RANK_V)
