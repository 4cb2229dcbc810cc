"""Scores of one tile of tokens in the decode kernel: keys are rebuilt, a tile of rotary pairs at a time."""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.tiles.keys import load_cos_sin, load_query_halves, rebuild_key, rotated_scores, weigh_key


@triton.jit
def load_query_tiles(
    row_ptrs,
    row_valid,
    dtype,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    TILE_HALF: tl.constexpr,
    HALF_TILES: tl.constexpr,
):
    """``HALF_TILES`` times both halves of the query of each row, one tuple of ``[TILE_HALF, TILE_ROWS]``."""
    tiles = ()
    for index in tl.static_range(HALF_TILES):
        first, second = load_query_halves(
            row_ptrs, row_valid, dtype, HEAD_DIM, ROTARY_DIM, TILE_HALF, index * TILE_HALF
        )
        tiles = tiles + (first, second)
    return tiles


@triton.jit
def rebuilt_scores(
    latent,  # [TILE_TOKENS, TILE_RANK], the first tile of ranks
    query_tiles,  # of load_query_tiles
    slot_ptrs,  # [TILE_TOKENS] pointers to the key latents of one group
    tokens,  # [TILE_TOKENS]
    valid,  # [TILE_TOKENS]
    head_of_row,  # [TILE_ROWS], in the program
    k_up_ptr,
    stride_k_up_group,
    stride_k_up_rank,
    k_bias_ptr,
    k_norm_ptr,
    k_norm_eps,
    cos_sin_ptr,
    first_kv_head,  # of the program
    GROUP_SIZE_K: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    RANK_K: tl.constexpr,
    FORMAT_K: tl.constexpr,
    TILE_RANK: tl.constexpr,
    TILE_HALF: tl.constexpr,
):
    """``RoPE(key) . query`` over the pairs of ``query_tiles``, float32 ``[TILE_TOKENS, TILE_ROWS]``.

    A tile of pairs at a time, so that keys and rotations fit into registers; a rotation is loaded once for all heads.
    Where keys are normalised, all pairs must be there: what a score is divided by is known behind the last.
    """
    scores = tl.zeros([tokens.shape[0], head_of_row.shape[0]], tl.float32)
    squares = scores
    for index in tl.static_range(len(query_tiles) // 2):
        cos, sin = load_cos_sin(cos_sin_ptr, tokens, valid, ROTARY_DIM, TILE_HALF, index * TILE_HALF)
        for head in tl.range(KV_HEADS, disable_licm=True):
            key_first, key_second = rebuild_key(
                latent, slot_ptrs, valid, k_up_ptr, stride_k_up_group, stride_k_up_rank, k_bias_ptr,
                first_kv_head + head, GROUP_SIZE_K=GROUP_SIZE_K, HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM,
                RANK_K=RANK_K, FORMAT_K=FORMAT_K, TILE_TOKENS=tokens.shape[0], TILE_RANK=TILE_RANK, TILE_HALF=TILE_HALF,
                half_start=index * TILE_HALF,
            )  # fmt: skip
            is_own = (head_of_row == head)[None, :]
            if k_norm_ptr is not None:
                key_first, key_second, of_tile = weigh_key(
                    key_first, key_second, k_norm_ptr, HEAD_DIM, ROTARY_DIM, index * TILE_HALF
                )
                squares += tl.where(is_own, of_tile[:, None], 0.0)
            of_head = rotated_scores(
                key_first, key_second, cos, sin, query_tiles[2 * index], query_tiles[2 * index + 1]
            )
            scores += tl.where(is_own, of_head, 0.0)
    if k_norm_ptr is not None:
        scores *= tl.rsqrt(squares / HEAD_DIM + k_norm_eps)
    return scores
