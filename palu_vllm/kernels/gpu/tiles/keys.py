"""Pieces of kernels that work on tiles of tokens: reading and rebuilding keys, for prefill too; attention for decode.

Decode has its scores transposed (``[TILE_TOKENS, TILE_ROWS]``): the rebuilt key is then the left operand of its product
and never leaves the registers it was rebuilt in. A row is one query of one head.
"""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.tiles.load_packed import load_numbers


@triton.jit
def slot_offsets(block_table_row_ptr, tokens, valid, stride_cache_block, stride_cache_slot, BLOCK_SIZE: tl.constexpr):
    """Where the slots of ``tokens`` begin, in elements from the start of a group: int64 of the shape of ``tokens``."""
    block = tl.load(block_table_row_ptr + tokens // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    return block * stride_cache_block + (tokens % BLOCK_SIZE).to(tl.int64) * stride_cache_slot


@triton.jit
def latent_offset(kv_head, GROUP_SIZE: tl.constexpr, OWN_GROUP_SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Where the latent of ``kv_head`` begins among those of its slot, of K or of V, which are ``WIDTH`` apart."""
    offset = 0
    if OWN_GROUP_SIZE != GROUP_SIZE:
        offset = kv_head % GROUP_SIZE // OWN_GROUP_SIZE * WIDTH
    return offset


@triton.jit
def columns_of_pairs(pair, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr):
    """Where the two numbers of ``pair`` are in a head. Behind the pairs that are rotated, half of ``ROTARY_DIM`` apart,
    come those of the other numbers.
    """
    if ROTARY_DIM == HEAD_DIM:
        first, second = pair, pair + HEAD_DIM // 2
    else:
        rotated = pair < ROTARY_DIM // 2
        first = tl.where(rotated, pair, pair + ROTARY_DIM // 2)
        second = first + tl.where(rotated, ROTARY_DIM // 2, (HEAD_DIM - ROTARY_DIM) // 2)
    return first, second


@triton.jit
def load_query_halves(
    row_ptrs, row_valid, dtype, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, TILE_HALF: tl.constexpr, half_start=0
):
    """Both numbers of the pairs from ``half_start`` on of each row's query, ``[TILE_HALF, TILE_ROWS]`` each; zero where
    there is no row.
    """
    half = half_start + tl.arange(0, TILE_HALF)
    to_first, to_second = columns_of_pairs(half, HEAD_DIM, ROTARY_DIM)
    # [TILE_HALF, TILE_ROWS]
    mask = row_valid[None, :] & (half < HEAD_DIM // 2)[:, None]
    first = tl.load(row_ptrs[None, :] + to_first[:, None], mask=mask, other=0.0).to(dtype)
    second = tl.load(row_ptrs[None, :] + to_second[:, None], mask=mask, other=0.0).to(dtype)
    return first, second


@triton.jit
def load_latent(
    slot_ptrs, valid, rank_start, dtype, RANK_K: tl.constexpr, TILE_RANK: tl.constexpr, FORMAT_K: tl.constexpr
):
    """Key latents from ``rank_start`` on, ``[TILE_TOKENS, TILE_RANK]``.

    Packed ones are loaded in the iteration before. What a loop carries, Triton gives to a product in shared memory, as
    what was just loaded; what was computed just now would fill the registers as left operand.
    """
    rank = rank_start + tl.arange(0, TILE_RANK)
    return load_numbers(slot_ptrs, valid, rank, rank < RANK_K, dtype, FORMAT_K)


@triton.jit
def add_rebuilt(
    first,  # [TILE_TOKENS, TILE_HALF] float32
    second,  # [TILE_TOKENS, TILE_HALF] float32
    latent,  # [TILE_TOKENS, TILE_RANK]
    up_ptr,  # the head's columns of k_up
    stride_k_up_rank,
    rank_start,
    RANK_K: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    TILE_RANK: tl.constexpr,
    TILE_HALF: tl.constexpr,
    half_start=0,
):
    """Both numbers of pairs of a key plus ``latent @ k_up`` over one tile of ranks."""
    rank = rank_start + tl.arange(0, TILE_RANK)
    half = half_start + tl.arange(0, TILE_HALF)
    to_first, to_second = columns_of_pairs(half, HEAD_DIM, ROTARY_DIM)
    # [TILE_RANK, TILE_HALF]
    rank_ptrs = up_ptr + rank[:, None] * stride_k_up_rank
    mask = (rank < RANK_K)[:, None] & (half < HEAD_DIM // 2)[None, :]
    up_first = tl.load(rank_ptrs + to_first[None, :], mask=mask, other=0.0).to(latent.dtype)
    up_second = tl.load(rank_ptrs + to_second[None, :], mask=mask, other=0.0).to(latent.dtype)
    first = tl.dot(latent, up_first, first, input_precision="ieee")
    second = tl.dot(latent, up_second, second, input_precision="ieee")
    return first, second


@triton.jit
def rebuild_key(
    latent,  # [TILE_TOKENS, TILE_RANK], the first tile of ranks, which all heads of a group share
    slot_ptrs,  # [TILE_TOKENS] pointers to the key latents of one group
    valid,  # [TILE_TOKENS]
    k_up_ptr,  # None, or [num_groups_k, RANK_K, GROUP_SIZE_K * HEAD_DIM]
    stride_k_up_group,
    stride_k_up_rank,
    k_bias_ptr,  # None, or [num_kv_heads * HEAD_DIM]
    kv_head,
    GROUP_SIZE_K: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    RANK_K: tl.constexpr,
    FORMAT_K: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_RANK: tl.constexpr,
    TILE_HALF: tl.constexpr,
    half_start=0,
):
    """Pairs from ``half_start`` on of one head's key before norm and rotation: both numbers, float32
    ``[TILE_TOKENS, TILE_HALF]`` each.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    half = half_start + tl.arange(0, TILE_HALF)
    to_first, to_second = columns_of_pairs(half, HEAD_DIM, ROTARY_DIM)
    first_column = kv_head % GROUP_SIZE_K * HEAD_DIM
    if k_up_ptr is None:
        # [TILE_TOKENS, TILE_HALF]
        first, second = first_column + to_first, first_column + to_second
        first = load_numbers(slot_ptrs, valid, first, half < HALF, tl.float32, FORMAT_K).to(tl.float32)
        second = load_numbers(slot_ptrs, valid, second, half < HALF, tl.float32, FORMAT_K).to(tl.float32)
    else:
        up_ptr = k_up_ptr + kv_head // GROUP_SIZE_K * stride_k_up_group + first_column
        first = tl.zeros([TILE_TOKENS, TILE_HALF], tl.float32)
        second = tl.zeros([TILE_TOKENS, TILE_HALF], tl.float32)
        first, second = add_rebuilt(
            first, second, latent, up_ptr, stride_k_up_rank, 0, RANK_K, HEAD_DIM, ROTARY_DIM, TILE_RANK, TILE_HALF,
            half_start,
        )  # fmt: skip
        for rank_start in range(TILE_RANK, RANK_K, TILE_RANK):
            further = load_latent(slot_ptrs, valid, rank_start, latent.dtype, RANK_K, TILE_RANK, FORMAT_K)
            first, second = add_rebuilt(
                first, second, further, up_ptr, stride_k_up_rank, rank_start, RANK_K, HEAD_DIM, ROTARY_DIM, TILE_RANK,
                TILE_HALF, half_start,
            )  # fmt: skip
    if k_bias_ptr is not None:
        head_ptr = k_bias_ptr + kv_head * HEAD_DIM
        first += tl.load(head_ptr + to_first, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
        second += tl.load(head_ptr + to_second, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
    return first, second


@triton.jit
def weigh_key(first, second, k_norm_ptr, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, half_start=0):
    """Pairs of a key ``[TILE_TOKENS, TILE_HALF]`` times the weights of its norm, and the sums of their squares before,
    ``[TILE_TOKENS]``.
    """
    half = half_start + tl.arange(0, first.shape[1])
    to_first, to_second = columns_of_pairs(half, HEAD_DIM, ROTARY_DIM)
    weight_first = tl.load(k_norm_ptr + to_first, mask=half < HEAD_DIM // 2, other=0.0).to(tl.float32)
    weight_second = tl.load(k_norm_ptr + to_second, mask=half < HEAD_DIM // 2, other=0.0).to(tl.float32)
    squares = tl.sum(first * first + second * second, axis=1)
    return first * weight_first[None, :], second * weight_second[None, :], squares


@triton.jit
def load_cos_sin(cos_sin_ptr, tokens, valid, ROTARY_DIM: tl.constexpr, TILE_HALF: tl.constexpr, half_start=0):
    """Cosines and sines of the positions ``tokens`` for the pairs from ``half_start`` on, float32
    ``[TILE_TOKENS, TILE_HALF]`` each; 1 and 0 for pairs that are not rotated.
    """
    half = half_start + tl.arange(0, TILE_HALF)
    # [TILE_TOKENS, TILE_HALF]
    pointers = cos_sin_ptr + tokens.to(tl.int64)[:, None] * ROTARY_DIM + half[None, :]
    mask = valid[:, None] & (half < ROTARY_DIM // 2)[None, :]
    cos = tl.load(pointers, mask=mask, other=1.0)
    sin = tl.load(pointers + ROTARY_DIM // 2, mask=mask, other=0.0)
    return cos, sin


@triton.jit
def rotated_scores(key_first, key_second, cos, sin, query_first, query_second):
    """``RoPE(key) . query``, float32 ``[TILE_TOKENS, TILE_ROWS]``; the rotated key has the dtype of the query."""
    # [TILE_TOKENS, TILE_HALF]
    rotated_first = (key_first * cos - key_second * sin).to(query_first.dtype)
    rotated_second = (key_second * cos + key_first * sin).to(query_first.dtype)
    # [TILE_TOKENS, TILE_ROWS]
    scores = tl.dot(rotated_first, query_first, input_precision="ieee")
    return tl.dot(rotated_second, query_second, scores, input_precision="ieee")


@triton.jit
def softmax_step(scores, running_max, running_sum):
    """One tile of online softmax over axis 0, for scores in units of log 2 and -inf where a row sees no token.

    Returns the unnormalised probabilities, the factor for what was accumulated so far, the new maximum and sum.
    """
    new_max = tl.maximum(running_max, tl.max(scores, axis=0))
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    probabilities = tl.exp2(scores - shift[None, :])
    correction = tl.exp2(running_max - shift)
    return probabilities, correction, new_max, running_sum * correction + tl.sum(probabilities, axis=0)


@triton.jit
def no_values(TILE_VALUES: tl.constexpr, TILE_ROWS: tl.constexpr, VALUE_TILES: tl.constexpr):
    """``VALUE_TILES`` times float32 zeros ``[TILE_VALUES, TILE_ROWS]``."""
    tiles = ()
    for _ in tl.static_range(VALUE_TILES):
        tiles = tiles + (tl.zeros([TILE_VALUES, TILE_ROWS], tl.float32),)
    return tiles


@triton.jit
def add_values(
    accumulated,  # tuple of [TILE_VALUES, TILE_ROWS] float32
    correction,  # [TILE_ROWS], factor for what was accumulated so far
    probabilities,  # [TILE_TOKENS, TILE_ROWS] float32
    value_ptrs,  # [TILE_TOKENS] pointers to the latent values of one group
    valid,  # [TILE_TOKENS]
    columns,  # [TILE_VALUES] of the latent values, those of the first tile
    dtype,
    RANK_V: tl.constexpr,
    FORMAT_V: tl.constexpr,
):
    """``accumulated * correction + latent_v^T probabilities``, tile by tile of the latent values."""
    added = ()
    for index in tl.static_range(len(accumulated)):
        column = columns + index * columns.shape[0]
        # [TILE_TOKENS, TILE_VALUES]
        values = load_numbers(value_ptrs, valid, column, column < RANK_V, dtype, FORMAT_V)
        weights = probabilities.to(values.dtype)
        corrected = accumulated[index] * correction[None, :]
        added = added + (tl.dot(tl.trans(values), weights, corrected, input_precision="ieee"),)
    return added
