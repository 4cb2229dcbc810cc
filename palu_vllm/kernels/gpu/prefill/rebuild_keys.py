"""Fills the workspace of prefill: rotated keys, each rebuilt once, and latent values as plain numbers.

``k[t, h] = RoPE_t(norm(c_k[t] @ k_up[g, :, h] + k_bias[h]))`` is a matrix product per KV head, as large as the context
(Palu, section 3.2); attention then reads neither pages nor packed numbers.
"""

from typing import Any

import triton
import triton.language as tl

from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.gpu.arguments import taken_by
from palu_vllm.kernels.gpu.prefill.context_tiles import find_context_tile
from palu_vllm.kernels.gpu.prefill.plan import Pass
from palu_vllm.kernels.gpu.tiles.keys import (
    columns_of_pairs,
    latent_offset,
    load_cos_sin,
    load_latent,
    rebuild_key,
    slot_offsets,
    weigh_key,
)
from palu_vllm.kernels.gpu.tiles.load_packed import load_numbers
from palu_vllm.kernels.gpu.tiling import ceil_div, padded

UNPACKED_VALUES = 64  # columns of one program
VARYING = ["num_requests", "first_tile", "first_group"]  # compiled for no value of theirs


@triton.jit(do_not_specialize=VARYING)
def rebuild_keys_kernel(
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, slot_width], numbers or bytes
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    tile_starts_ptr,  # [requests + 1] int32
    k_up_ptr,  # None, or [num_groups_k, RANK_K, GROUP_SIZE_K * HEAD_DIM]
    k_bias_ptr,  # None, or [num_kv_heads * HEAD_DIM]
    k_norm_ptr,  # None, or [HEAD_DIM]
    cos_sin_ptr,  # [max_position, ROTARY_DIM] float32
    key_ptr,  # [KV heads of the pass, tiles of the pass * TILE_CONTEXT, HEAD_DIM]
    stride_cache_block,
    stride_cache_group,
    stride_cache_slot,
    stride_block_table_request,
    stride_k_up_group,
    stride_k_up_rank,
    k_norm_eps,
    num_requests,
    first_tile,
    first_group,
    GROUP_SIZE: tl.constexpr,
    GROUP_SIZE_K: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    RANK_K: tl.constexpr,
    FORMAT_K: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    TILE_CONTEXT: tl.constexpr,
    TILE_RANK: tl.constexpr,
    TILE_HALF: tl.constexpr,
):
    """One program: the keys of one KV head for one tile of the context; those past its end are finite."""
    tile = first_tile + tl.program_id(0)
    if tile >= tl.load(tile_starts_ptr + num_requests):
        return
    request, tokens, valid = find_context_tile(
        tile, tile_starts_ptr, seq_lens_ptr, query_start_loc_ptr, num_requests, SLIDING_WINDOW, NUM_SINKS, TILE_CONTEXT
    )
    head_of_pass = tl.program_id(1).to(tl.int64)
    kv_head = first_group * GROUP_SIZE + head_of_pass
    table_row_ptr = block_table_ptr + request * stride_block_table_request
    slots = slot_offsets(table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
    to_key = latent_offset(kv_head, GROUP_SIZE, GROUP_SIZE_K, KEY_WIDTH)
    slot_ptrs = cache_ptr + kv_head // GROUP_SIZE * stride_cache_group + to_key + slots
    latent = load_latent(slot_ptrs, valid, 0, key_ptr.dtype.element_ty, RANK_K, TILE_RANK, FORMAT_K)
    # [TILE_CONTEXT, TILE_HALF]
    first, second = rebuild_key(
        latent, slot_ptrs, valid, k_up_ptr, stride_k_up_group, stride_k_up_rank, k_bias_ptr, kv_head,
        GROUP_SIZE_K=GROUP_SIZE_K, HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM, RANK_K=RANK_K, FORMAT_K=FORMAT_K,
        TILE_TOKENS=TILE_CONTEXT, TILE_RANK=TILE_RANK, TILE_HALF=TILE_HALF,
    )  # fmt: skip
    if k_norm_ptr is not None:
        first, second, squares = weigh_key(first, second, k_norm_ptr, HEAD_DIM, ROTARY_DIM)
        inverse = tl.rsqrt(squares / HEAD_DIM + k_norm_eps)[:, None]
        first, second = first * inverse, second * inverse
    cos, sin = load_cos_sin(cos_sin_ptr, tokens, valid, ROTARY_DIM, TILE_HALF)
    half = tl.arange(0, TILE_HALF)
    to_first, to_second = columns_of_pairs(half, HEAD_DIM, ROTARY_DIM)
    first_row = (head_of_pass * tl.num_programs(0) + tl.program_id(0)) * TILE_CONTEXT
    rows = first_row + tl.arange(0, TILE_CONTEXT)
    row_ptrs = key_ptr + rows[:, None] * HEAD_DIM
    mask = (half < HEAD_DIM // 2)[None, :]
    tl.store(row_ptrs + to_first[None, :], (first * cos - second * sin).to(key_ptr.dtype.element_ty), mask=mask)
    tl.store(row_ptrs + to_second[None, :], (second * cos + first * sin).to(key_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def unpack_values_kernel(
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, slot_width], numbers or bytes
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    tile_starts_ptr,  # [requests + 1] int32
    value_ptr,  # [groups of V of the pass, tiles of the pass * TILE_CONTEXT, RANK_V]
    stride_cache_block,
    stride_cache_group,
    stride_cache_slot,
    stride_block_table_request,
    num_requests,
    first_tile,
    first_group,
    VALUE_LATENTS: tl.constexpr,
    RANK_V: tl.constexpr,
    FORMAT_V: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_START: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    TILE_CONTEXT: tl.constexpr,
    TILE_VALUES: tl.constexpr,
):
    """One program: some columns of the latent values of a group of V for one tile of the context, zero past its end."""
    tile = first_tile + tl.program_id(0)
    if tile >= tl.load(tile_starts_ptr + num_requests):
        return
    request, tokens, valid = find_context_tile(
        tile, tile_starts_ptr, seq_lens_ptr, query_start_loc_ptr, num_requests, SLIDING_WINDOW, NUM_SINKS, TILE_CONTEXT
    )
    group_of_pass = tl.program_id(1).to(tl.int64)
    table_row_ptr = block_table_ptr + request * stride_block_table_request
    slots = slot_offsets(table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
    to_value = VALUE_START + group_of_pass % VALUE_LATENTS * VALUE_WIDTH
    part_ptrs = cache_ptr + (first_group + group_of_pass // VALUE_LATENTS) * stride_cache_group + slots + to_value
    column = tl.program_id(2) * TILE_VALUES + tl.arange(0, TILE_VALUES)
    # [TILE_CONTEXT, TILE_VALUES]
    values = load_numbers(part_ptrs, valid, column, column < RANK_V, value_ptr.dtype.element_ty, FORMAT_V)
    first_row = (group_of_pass * tl.num_programs(0) + tl.program_id(0)) * TILE_CONTEXT
    rows = first_row + tl.arange(0, TILE_CONTEXT)
    tl.store(value_ptr + rows[:, None] * RANK_V + column[None, :], values, mask=(column < RANK_V)[None, :])


def fill_workspace(available: dict[str, Any], shape: LayerShape, part: Pass) -> None:
    """Writes the keys and the values of one pass.

    ``available`` has everything by its name in the kernels. ``key_ptr [KV heads, tokens, head_dim]`` and
    ``value_ptr [groups of V, tokens, rank_v]`` are those of the pass, contiguous, of the dtype that attention computes
    in; tiles that no request has are left alone.
    """
    rebuild_keys_kernel[(part.tiles, part.groups * shape.group_size)](**taken_by(rebuild_keys_kernel, available))
    columns = {"TILE_VALUES": min(UNPACKED_VALUES, padded(shape.rank_v)), "VALUE_LATENTS": shape.value_latents}
    groups_v = part.groups * shape.value_latents
    unpack_values_kernel[(part.tiles, groups_v, ceil_div(shape.rank_v, columns["TILE_VALUES"]))](
        **taken_by(unpack_values_kernel, available | columns)
    )
