"""Attention of one query per request over latents, split over the context (Palu, section 3.2 and equation 3)."""

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
def split_bounds(seq_len, split, num_splits, SLIDING_WINDOW: tl.constexpr, TILE_TOKENS: tl.constexpr):
    """Tokens ``[start, stop)`` of one split: whole tiles of what the window leaves; empty past the last tile."""
    first = 0
    if SLIDING_WINDOW is not None:
        first = tl.maximum(seq_len - SLIDING_WINDOW, 0)
    tiles_per_split = tl.cdiv(tl.cdiv(seq_len - first, TILE_TOKENS), num_splits)
    start = first + split * tiles_per_split * TILE_TOKENS
    return start, tl.minimum(start + tiles_per_split * TILE_TOKENS, seq_len)


@triton.jit
def decode_split_kernel(
    query_ptr,  # [tokens, num_heads, HEAD_DIM], rotated
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, RANK_K + RANK_V], or bytes
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    k_up_ptr,  # None, or [num_groups, RANK_K, GROUP_SIZE * HEAD_DIM]
    k_bias_ptr,  # None, or [num_kv_heads * HEAD_DIM]
    cos_sin_ptr,  # [max_position, HEAD_DIM] float32
    partial_ptr,  # [requests, num_splits, num_heads, RANK_V] float32, not normalised
    partial_max_ptr,  # [requests, num_splits, num_heads] float32, in units of log 2
    partial_sum_ptr,  # [requests, num_splits, num_heads] float32
    stride_query_token,
    stride_query_head,
    stride_cache_block,
    stride_cache_group,
    stride_cache_slot,
    stride_block_table_request,
    stride_k_up_group,
    stride_k_up_rank,
    scale_log2,  # scale / ln 2
    num_groups,
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
    """One program: all heads of one group of one request over one split, for some tiles of the latent value."""
    HEADS: tl.constexpr = GROUP_SIZE * QUERIES_PER_KV
    request = tl.program_id(0).to(tl.int64)
    group = (tl.program_id(1) % num_groups).to(tl.int64)
    values_of_program = tl.program_id(1) // num_groups
    split, num_splits = tl.program_id(2), tl.num_programs(2)
    seq_len = tl.load(seq_lens_ptr + request)
    start, stop = split_bounds(seq_len, split, num_splits, SLIDING_WINDOW, TILE_TOKENS)
    token = tl.load(query_start_loc_ptr + request).to(tl.int64)
    if (tl.load(query_start_loc_ptr + request + 1) == token) | (start >= stop):
        return

    row = tl.arange(0, TILE_ROWS)
    head = group * HEADS + row
    row_ptrs = query_ptr + token * stride_query_token + head * stride_query_head
    dtype = cache_ptr.dtype.element_ty if FORMAT_K is None else query_ptr.dtype.element_ty
    query_first, query_second = load_query_halves(row_ptrs, row < HEADS, dtype, HEAD_DIM, TILE_HALF)
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
        cos, sin = load_cos_sin(cos_sin_ptr, tokens, valid, HEAD_DIM, TILE_HALF)
        # [TILE_TOKENS, TILE_ROWS]
        scores = tl.zeros([TILE_TOKENS, TILE_ROWS], tl.float32)
        if FORMAT_K is None:
            latent = load_latent(slot_ptrs, valid, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)
        for head_in_group in range(GROUP_SIZE):
            key_first, key_second = rebuild_key(
                latent,
                slot_ptrs,
                valid,
                k_up_ptr,
                stride_k_up_group,
                stride_k_up_rank,
                k_bias_ptr,
                group * GROUP_SIZE + head_in_group,
                GROUP_SIZE,
                HEAD_DIM,
                RANK_K,
                FORMAT_K,
                TILE_TOKENS,
                TILE_RANK,
                TILE_HALF,
            )
            of_head = rotated_scores(key_first, key_second, cos, sin, query_first, query_second)
            scores = tl.where((row // QUERIES_PER_KV == head_in_group)[None, :], of_head, scores)
        scores = tl.where(valid[:, None], scores * scale_log2, float("-inf"))
        probabilities, correction, running_max, running_sum = softmax_step(scores, running_max, running_sum)
        accumulated = add_values(
            accumulated, correction, probabilities, slot_ptrs + VALUE_START, valid, columns, dtype, RANK_V, FORMAT_V
        )
        if FORMAT_K is not None:
            ahead = tokens + TILE_TOKENS
            slots = slot_offsets(table_row_ptr, ahead, ahead < stop, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
            latent = load_latent(group_ptr + slots, ahead < stop, 0, dtype, RANK_K, TILE_RANK, FORMAT_K)

    partial_row = (request * num_splits + split) * (num_groups * HEADS) + head
    if values_of_program == 0:
        tl.store(partial_max_ptr + partial_row, running_max, mask=row < HEADS)
        tl.store(partial_sum_ptr + partial_row, running_sum, mask=row < HEADS)
    for index in tl.static_range(VALUE_TILES):
        column = columns + index * TILE_VALUES
        mask = (column < RANK_V)[:, None] & (row < HEADS)[None, :]
        tl.store(partial_ptr + partial_row[None, :] * RANK_V + column[:, None], accumulated[index], mask=mask)


@triton.jit
def decode_reduce_kernel(
    partial_ptr,  # [requests, num_splits, num_heads, RANK_V] float32
    partial_max_ptr,  # [requests, num_splits, num_heads] float32
    partial_sum_ptr,  # [requests, num_splits, num_heads] float32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    out_ptr,  # [tokens, num_heads, RANK_V]
    stride_out_token,
    stride_out_head,
    num_splits,
    RANK_V: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_VALUES: tl.constexpr,
):
    """One program: joins the splits of one head of one request."""
    request, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_heads = tl.num_programs(1)
    token = tl.load(query_start_loc_ptr + request).to(tl.int64)
    if tl.load(query_start_loc_ptr + request + 1) == token:
        return
    seq_len = tl.load(seq_lens_ptr + request)
    # [TILE_VALUES]
    columns = tl.arange(0, TILE_VALUES)
    accumulated = tl.zeros([TILE_VALUES], tl.float32)
    running_max = float("-inf")
    running_sum = 0.0
    for split in range(num_splits):
        start, stop = split_bounds(seq_len, split, num_splits, SLIDING_WINDOW, TILE_TOKENS)
        if start < stop:
            partial_row = (request * num_splits + split) * num_heads + head
            partial_max = tl.load(partial_max_ptr + partial_row)
            partial = tl.load(partial_ptr + partial_row * RANK_V + columns, mask=columns < RANK_V, other=0.0)
            new_max = tl.maximum(running_max, partial_max)
            old, new = tl.exp2(running_max - new_max), tl.exp2(partial_max - new_max)
            accumulated = accumulated * old + partial * new
            running_sum = running_sum * old + tl.load(partial_sum_ptr + partial_row) * new
            running_max = new_max
    out_row_ptr = out_ptr + token * stride_out_token + head * stride_out_head
    normalised = (accumulated / running_sum).to(out_ptr.dtype.element_ty)
    tl.store(out_row_ptr + columns, normalised, mask=columns < RANK_V)


def partial_shapes(shape: AttentionShape, requests: int, num_splits: int) -> tuple[tuple[int, ...], ...]:
    """Of the three float32 scratch tensors of ``decode_attention``: sums of values, maxima, sums of weights."""
    rows = (requests, num_splits, shape.num_heads)
    return (*rows, shape.rank_v), rows, rows


def decode_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    batch: PagedBatch,
    out: torch.Tensor,
    shape: AttentionShape,
    rebuild: KeyRebuild,
    tiling: Tiling,
    partials: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """``z[j] = sum_t softmax_t(scale * q_j . k[t, h]) c_v[t]`` for requests of at most one query.

    Shapes as in ``operands``; ``partials`` are contiguous float32 tensors of ``partial_shapes``, any contents.
    """
    requests, num_splits = partials[1].shape[:2]
    partial, partial_max, partial_sum = partials
    scratch = {"partial_ptr": partial, "partial_max_ptr": partial_max, "partial_sum_ptr": partial_sum}
    programs_per_group = ceil_div(shape.rank_v, tiling.values_per_program)
    decode_split_kernel[(requests, shape.num_groups * programs_per_group, num_splits)](
        **attention_arguments(query, cache, batch, shape, rebuild, tiling), **scratch
    )
    decode_reduce_kernel[(requests, shape.num_heads)](
        **scratch,
        seq_lens_ptr=batch.seq_lens,
        query_start_loc_ptr=batch.query_start_loc,
        out_ptr=out,
        stride_out_token=out.stride(0),
        stride_out_head=out.stride(1),
        num_splits=num_splits,
        RANK_V=shape.rank_v,
        SLIDING_WINDOW=shape.sliding_window,
        TILE_TOKENS=tiling.tokens,
        TILE_VALUES=triton.next_power_of_2(shape.rank_v),
        num_warps=4,
    )
