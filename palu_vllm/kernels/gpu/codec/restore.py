"""Whole keys and values of what many queries see: codes are read once per head, not once per few rows.

``k = centre + s D level`` and ``v = centre + s D level``, in the type of the queries, as a cache without a codec has
them. Attention over these is that of any whole keys.
"""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.codec.load_codes import load_levels
from palu_vllm.kernels.gpu.codec.steps import POSITIONS, load_scales
from palu_vllm.kernels.gpu.prefill.context_tiles import find_context_tile
from palu_vllm.kernels.gpu.prefill.rebuild_keys import VARYING
from palu_vllm.kernels.gpu.tiles.keys import slot_offsets

ANY_VALUE = [*VARYING, "stride_block_table_request"]  # compiled for none, nor for where the table of a part begins


@triton.jit
def decoded(slot_ptrs, valid, matrix_ptr, dim, levels_ptr, dtype: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr):
    """Levels times the rows of ``matrix_ptr [columns, DIM]``: ``[TILE_CONTEXT, dim]`` float32, any without a token."""
    product = tl.zeros([valid.shape[0], dim.shape[0]], tl.float32)
    for index in tl.static_range(len(TILES)):
        levels = load_levels(slot_ptrs, valid, levels_ptr, dtype, TILES[index][0], TILES[index][1], TILES[index][2],
                             TILES[index][3])  # fmt: skip
        for part in tl.static_range(len(levels)):
            column = TILES[index][4] + part * TILES[index][3] + tl.arange(0, TILES[index][3])
            rows = tl.load(matrix_ptr + (column[:, None] * DIM + dim[None, :]), mask=(dim < DIM)[None, :], other=0.0)
            product = tl.dot(levels[part], rows, product, input_precision="ieee")
    return product


@triton.jit
def usual_centres(blocks_ptr, tokens, valid, cos_ptr, sin_ptr, frequency_ptr, dim, FEATURES: tl.constexpr,
                  FREQUENCIES: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """Of keys at ``tokens``, ``[TILE_CONTEXT, dim]``."""
    there = dim < DIM
    frequency = tl.load(frequency_ptr + dim, mask=there, other=0)
    pointers = blocks_ptr + ((tokens // POSITIONS * FEATURES)[:, None] + frequency[None, :])
    mask = valid[:, None] & there[None, :]
    cos = tl.load(pointers, mask=mask, other=0.0)
    sin = tl.load(pointers + FREQUENCIES, mask=mask, other=0.0)
    of_cos, of_sin = tl.load(cos_ptr + dim, mask=there, other=0.0), tl.load(sin_ptr + dim, mask=there, other=0.0)
    return of_cos[None, :] * cos + of_sin[None, :] * sin


@triton.jit
def find_slots(
    tile, tile_starts_ptr, seq_lens_ptr, query_start_loc_ptr, block_table_ptr, cache_ptr, kv_head, num_requests,
    stride_cache_block, stride_cache_group, stride_cache_slot, stride_block_table_request,
    HEADS_OF_GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, SLIDING_WINDOW: tl.constexpr, TILE_CONTEXT: tl.constexpr,
):  # fmt: skip
    """Slots of a tile of the context, positions of their tokens and which of these there are, ``[TILE_CONTEXT]``."""
    request, tokens, valid = find_context_tile(
        tile, tile_starts_ptr, seq_lens_ptr, query_start_loc_ptr, num_requests, SLIDING_WINDOW, 0, TILE_CONTEXT
    )
    table_row_ptr = block_table_ptr + request * stride_block_table_request
    slots = slot_offsets(table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE)
    return cache_ptr + kv_head // HEADS_OF_GROUP * stride_cache_group + slots, tokens, valid


@triton.jit(do_not_specialize=ANY_VALUE, do_not_specialize_on_alignment=["block_table_ptr"])
def restore_keys_kernel(
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, bytes] uint8
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    tile_starts_ptr,  # [requests + 1] int32
    levels_ptr,  # [128] float32
    blocks_ptr,  # [num_blocks_of_positions, FEATURES] float32
    frequency_of_ptr,  # [HEAD_DIM] int64
    centre_cos_ptr, centre_sin_ptr, sink_k_ptr,  # [kv_heads, HEAD_DIM] float32
    decoder_k_ptr,  # [kv_heads, COLUMNS_K, HEAD_DIM]
    key_ptr,  # [KV heads of the pass, tiles of the pass * TILE_CONTEXT, HEAD_DIM]
    stride_cache_block, stride_cache_group, stride_cache_slot, stride_block_table_request,
    num_requests,
    first_tile,
    first_group,  # the first KV head of the pass
    HEADS_OF_GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILES_K: tl.constexpr,
    COLUMNS_K: tl.constexpr, FEATURES: tl.constexpr, FREQUENCIES: tl.constexpr, SLIDING_WINDOW: tl.constexpr,
    TILE_CONTEXT: tl.constexpr, TILE_KEY: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One program: some numbers of keys of one KV head for one tile of the context; those past its end are finite.

    A token whose key or value is no number has a key that is none, so that it reaches those that see it.
    """
    tile = first_tile + tl.program_id(0)
    if tile >= tl.load(tile_starts_ptr + num_requests):
        return
    head_of_pass = tl.program_id(1).to(tl.int64)
    kv_head = first_group + head_of_pass
    slot_ptrs, tokens, valid = find_slots(
        tile, tile_starts_ptr, seq_lens_ptr, query_start_loc_ptr, block_table_ptr, cache_ptr, kv_head, num_requests,
        stride_cache_block=stride_cache_block, stride_cache_group=stride_cache_group,
        stride_cache_slot=stride_cache_slot, stride_block_table_request=stride_block_table_request,
        HEADS_OF_GROUP=HEADS_OF_GROUP, BLOCK_SIZE=BLOCK_SIZE, SLIDING_WINDOW=SLIDING_WINDOW, TILE_CONTEXT=TILE_CONTEXT,
    )  # fmt: skip
    size, of_sink, size_v, _ = load_scales(slot_ptrs, valid)
    size += tl.where(size_v < float("inf"), 0.0, float("nan"))
    dim, head = tl.program_id(2) * TILE_KEY + tl.arange(0, TILE_KEY), kv_head * HEAD_DIM
    # [TILE_CONTEXT, TILE_KEY]
    numbers = decoded(
        slot_ptrs, valid, decoder_k_ptr + kv_head * (COLUMNS_K * HEAD_DIM), dim, levels_ptr, DTYPE, HEAD_DIM, TILES_K
    )
    usual = usual_centres(
        blocks_ptr, tokens, valid, centre_cos_ptr + head, centre_sin_ptr + head, frequency_of_ptr, dim, FEATURES,
        FREQUENCIES, HEAD_DIM,
    )  # fmt: skip
    sink = tl.load(sink_k_ptr + head + dim, mask=dim < HEAD_DIM, other=0.0)
    key = numbers * size[:, None] + tl.where(of_sink[:, None], sink[None, :], usual)
    row = (head_of_pass * tl.num_programs(0) + tl.program_id(0)) * TILE_CONTEXT + tl.arange(0, TILE_CONTEXT)
    tl.store(key_ptr + row[:, None] * HEAD_DIM + dim[None, :], key.to(DTYPE), mask=(dim < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=ANY_VALUE, do_not_specialize_on_alignment=["block_table_ptr"])
def restore_values_kernel(
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, bytes] uint8
    block_table_ptr,  # [requests, max_blocks] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    tile_starts_ptr,  # [requests + 1] int32
    levels_ptr,  # [128] float32
    decoder_v_ptr,  # [kv_heads, COLUMNS_V, RANK_V]
    centres_v_ptr,  # [kv_heads, 2, RANK_V] float32: the usual one, the sinks'
    value_ptr,  # [KV heads of the pass, tiles of the pass * TILE_CONTEXT, RANK_V]
    stride_cache_block, stride_cache_group, stride_cache_slot, stride_block_table_request,
    num_requests,
    first_tile,
    first_group,  # the first KV head of the pass
    HEADS_OF_GROUP: tl.constexpr, RANK_V: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILES_V: tl.constexpr,
    COLUMNS_V: tl.constexpr, SLIDING_WINDOW: tl.constexpr, TILE_CONTEXT: tl.constexpr, TILE_VALUE: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """One program: some numbers of values of one KV head for one tile of the context; those past its end are finite.

    A value that is no number is zero: it would reach those that do not see it, times a probability of zero.
    """
    tile = first_tile + tl.program_id(0)
    if tile >= tl.load(tile_starts_ptr + num_requests):
        return
    head_of_pass = tl.program_id(1).to(tl.int64)
    kv_head = first_group + head_of_pass
    slot_ptrs, _, valid = find_slots(
        tile, tile_starts_ptr, seq_lens_ptr, query_start_loc_ptr, block_table_ptr, cache_ptr, kv_head, num_requests,
        stride_cache_block=stride_cache_block, stride_cache_group=stride_cache_group,
        stride_cache_slot=stride_cache_slot, stride_block_table_request=stride_block_table_request,
        HEADS_OF_GROUP=HEADS_OF_GROUP, BLOCK_SIZE=BLOCK_SIZE, SLIDING_WINDOW=SLIDING_WINDOW, TILE_CONTEXT=TILE_CONTEXT,
    )  # fmt: skip
    _, _, size, of_sink = load_scales(slot_ptrs, valid)
    size = tl.where(size < float("inf"), size, 0.0)
    dim = tl.program_id(2) * TILE_VALUE + tl.arange(0, TILE_VALUE)
    matrix_ptr = decoder_v_ptr + kv_head * (COLUMNS_V * RANK_V)
    # [TILE_CONTEXT, TILE_VALUE]
    numbers = decoded(slot_ptrs, valid, matrix_ptr, dim, levels_ptr, DTYPE, RANK_V, TILES_V)
    centre_ptrs = centres_v_ptr + kv_head * (2 * RANK_V) + dim
    usual = tl.load(centre_ptrs, mask=dim < RANK_V, other=0.0)
    sink = tl.load(centre_ptrs + RANK_V, mask=dim < RANK_V, other=0.0)
    value = numbers * size[:, None] + tl.where(of_sink[:, None], sink[None, :], usual[None, :])
    row = (head_of_pass * tl.num_programs(0) + tl.program_id(0)) * TILE_CONTEXT + tl.arange(0, TILE_CONTEXT)
    tl.store(value_ptr + row[:, None] * RANK_V + dim[None, :], value.to(DTYPE), mask=(dim < RANK_V)[None, :])
