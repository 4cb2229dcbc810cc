"""Attention of many queries per request over latents, those of the queries themselves included.

Everything is read from the cache, also what this step has written, so that chunks, cached prefixes and whole
prompts give the same result (Palu, section 3.2 and equation 3).
"""

import torch
import triton
import triton.language as tl

from palu_vllm.kernels.arguments import attention_arguments
from palu_vllm.kernels.common import (
    add_values,
    load_cos_sin,
    load_latent,
    load_query_halves,
    no_values,
    rebuild_key,
    rotated_scores,
    slot_offsets,
    softmax_step,
)
from palu_vllm.kernels.operands import AttentionShape, KeyRebuild, PagedBatch
from palu_vllm.kernels.tiling import Tiling, ceil_div


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
def prefill_kernel(
    query_ptr,  # [tokens, num_heads, HEAD_DIM], rotated
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, RANK_K + RANK_V], or bytes
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    k_up_ptr,  # None, or [num_groups, RANK_K, GROUP_SIZE * HEAD_DIM]
    k_bias_ptr,  # None, or [num_kv_heads * HEAD_DIM]
    cos_sin_ptr,  # [max_position, HEAD_DIM] float32
    out_ptr,  # [tokens, num_heads, RANK_V]
    stride_query_token,
    stride_query_head,
    stride_cache_block,
    stride_cache_group,
    stride_cache_slot,
    stride_block_table_request,
    stride_k_up_group,
    stride_k_up_rank,
    stride_out_token,
    stride_out_head,
    scale_log2,  # scale / ln 2
    num_groups,
    num_requests,
    GROUP_SIZE: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    RANK_K: tl.constexpr,
    RANK_V: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FORMAT_V: tl.constexpr,
    VALUE_START: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_RANK: tl.constexpr,
    TILE_HALF: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_VALUES: tl.constexpr,
    VALUE_TILES: tl.constexpr,
):
    """One program: some queries of all heads of one KV head, for some tiles of the latent value."""
    TILE_QUERIES: tl.constexpr = TILE_ROWS // QUERIES_PER_KV
    kv_head = (tl.program_id(1) % (num_groups * GROUP_SIZE)).to(tl.int64)
    group = kv_head // GROUP_SIZE
    request, first_query = find_query_tile(query_start_loc_ptr, tl.program_id(0), num_requests, TILE_QUERIES)
    query_start = tl.load(query_start_loc_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - query_start
    if first_query >= query_len:
        return
    cached = tl.load(seq_lens_ptr + request) - query_len
    stop = cached + tl.minimum(first_query + TILE_QUERIES, query_len)
    start = 0 if SLIDING_WINDOW is None else tl.maximum(cached + first_query - SLIDING_WINDOW + 1, 0)

    # [TILE_ROWS]
    row = tl.arange(0, TILE_ROWS)
    query = first_query + row // QUERIES_PER_KV
    row_valid = (row // QUERIES_PER_KV < TILE_QUERIES) & (query < query_len)
    token = (query_start + query).to(tl.int64)
    head = kv_head * QUERIES_PER_KV + row % QUERIES_PER_KV
    row_ptrs = query_ptr + token * stride_query_token + head * stride_query_head
    dtype = cache_ptr.dtype.element_ty if FORMAT_K is None else query_ptr.dtype.element_ty
    query_first, query_second = load_query_halves(row_ptrs, row_valid, dtype, HEAD_DIM, TILE_HALF)
    values_of_program = tl.program_id(1) // (num_groups * GROUP_SIZE)
    columns = values_of_program * (TILE_VALUES * VALUE_TILES) + tl.arange(0, TILE_VALUES)
    accumulated = no_values(TILE_VALUES, TILE_ROWS, VALUE_TILES)
    running_max = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    running_sum = tl.zeros([TILE_ROWS], tl.float32)
    table_row_ptr = block_table_ptr + request * stride_block_table_request
    group_ptr = cache_ptr + group * stride_cache_group
    if FORMAT_K is not None:
        tokens = start + tl.arange(0, TILE_TOKENS)
        slots = slot_offsets(table_row_ptr, tokens, tokens < stop, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
        latent = load_latent(group_ptr + slots, tokens < stop, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)
    for tile_start in range(start, stop, TILE_TOKENS):
        tokens = tile_start + tl.arange(0, TILE_TOKENS)
        valid = tokens < stop
        slots = slot_offsets(table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
        slot_ptrs = group_ptr + slots
        if FORMAT_K is None:
            latent = load_latent(slot_ptrs, valid, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)
        key_first, key_second = rebuild_key(
            latent,
            slot_ptrs,
            valid,
            k_up_ptr,
            stride_k_up_group,
            stride_k_up_rank,
            k_bias_ptr,
            kv_head,
            GROUP_SIZE,
            HEAD_DIM,
            RANK_K,
            FORMAT_K,
            TILE_TOKENS,
            TILE_RANK,
            TILE_HALF,
        )
        cos, sin = load_cos_sin(cos_sin_ptr, tokens, valid, HEAD_DIM, TILE_HALF)
        # [TILE_TOKENS, TILE_ROWS]
        scores = rotated_scores(key_first, key_second, cos, sin, query_first, query_second) * scale_log2
        distance = (cached + query)[None, :] - tokens[:, None]
        visible = valid[:, None] & (distance >= 0)
        if SLIDING_WINDOW is not None:
            visible &= distance < SLIDING_WINDOW
        scores = tl.where(visible, scores, float("-inf"))
        probabilities, correction, running_max, running_sum = softmax_step(scores, running_max, running_sum)
        accumulated = add_values(
            accumulated, correction, probabilities, slot_ptrs + VALUE_START, valid, columns, dtype, RANK_V, FORMAT_V
        )
        if FORMAT_K is not None:
            ahead = tokens + TILE_TOKENS
            slots = slot_offsets(table_row_ptr, ahead, ahead < stop, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
            latent = load_latent(group_ptr + slots, ahead < stop, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)

    sums = tl.where(row_valid, running_sum, 1.0)  # a row of padding has seen nothing
    out_row_ptrs = out_ptr + token * stride_out_token + head * stride_out_head
    for index in tl.static_range(VALUE_TILES):
        column = columns + index * TILE_VALUES
        # [TILE_VALUES, TILE_ROWS]
        normalised = accumulated[index] / sums[None, :]
        mask = (column < RANK_V)[:, None] & row_valid[None, :]
        tl.store(out_row_ptrs[None, :] + column[:, None], normalised.to(out_ptr.dtype.element_ty), mask=mask)


def prefill_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    batch: PagedBatch,
    out: torch.Tensor,
    shape: AttentionShape,
    rebuild: KeyRebuild,
    tiling: Tiling,
) -> None:
    """``z[j] = sum_t softmax_t(scale * q_j . k[t, h]) c_v[t]`` for any number of queries per request.

    Shapes as in ``operands``.
    """
    requests = batch.seq_lens.shape[0]
    query_tiles = query.shape[0] // (tiling.rows // shape.queries_per_kv) + requests
    programs_per_head = ceil_div(shape.rank_v, tiling.values_per_program)
    prefill_kernel[(query_tiles, shape.num_kv_heads * programs_per_head)](
        **attention_arguments(query, cache, batch, shape, rebuild, tiling),
        out_ptr=out,
        stride_out_token=out.stride(0),
        stride_out_head=out.stride(1),
        num_requests=requests,
    )
