"""Scores of one tile of tokens in the decode kernel: slow rotary pairs, whose keys are not rebuilt.

``docs/concepts/absorbed-rope.md`` derives it; ``absorbed.absorbed_scores`` is the specification. ``GROUP_SIZE`` counts
the KV heads of one program, which may be part of a group. Rows are ordered by KV head: row
``h * ROWS_PER_KV + query * QUERIES_PER_KV + j`` is query head j of KV head h. Columns of u are ordered by term first:
``term * TILE_ROWS + row``.
"""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.tiles.keys import columns_of_pairs, load_latent


@triton.jit
def moved_query(
    query_ptr,  # of the first query and head of the program
    stride_query_token,
    stride_query_head,
    query_len,
    head,  # KV head of the program
    position,  # first of the tile
    cos_sin_ptr,
    coefficients_ptr,  # [2, TERMS, HEAD_DIM // 2 - FAST] float32: real, then imaginary parts
    QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    FAST: tl.constexpr,
    TILE_SLOW: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS_PER_KV: tl.constexpr,
):
    """What the slow columns of ``k_up`` are multiplied with: ``conj(q_i) e^{i theta_i position} C[t, i]``.

    Its real part meets first halves, its negated imaginary part second halves: two float32
    ``[TILE_SLOW, TERMS * ROWS_PER_KV]``, terms outermost; zero where there is no pair or query.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    pair = FAST + tl.arange(0, TILE_SLOW)
    to_first, to_second = columns_of_pairs(pair, HEAD_DIM, ROTARY_DIM)
    column = tl.arange(0, TERMS * ROWS_PER_KV)
    term, row = column // ROWS_PER_KV, column % ROWS_PER_KV
    query, head_of_kv = row // QUERIES_PER_KV, row % QUERIES_PER_KV
    # [TILE_SLOW, TERMS * ROWS_PER_KV]
    row_ptrs = query_ptr + query * stride_query_token + (head * QUERIES_PER_KV + head_of_kv) * stride_query_head
    mask = (pair < HALF)[:, None] & (query < query_len)[None, :]
    first = tl.load(row_ptrs[None, :] + to_first[:, None], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(row_ptrs[None, :] + to_second[:, None], mask=mask, other=0.0).to(tl.float32)
    pointers = coefficients_ptr + term[None, :] * (HALF - FAST) + (pair - FAST)[:, None]
    real = tl.load(pointers, mask=mask, other=0.0)
    imaginary = tl.load(pointers + TERMS * (HALF - FAST), mask=mask, other=0.0)
    # [TILE_SLOW, 1]
    rotation_ptr = cos_sin_ptr + position * tl.full([], ROTARY_DIM, tl.int64) + pair
    cos = tl.load(rotation_ptr, mask=pair < ROTARY_DIM // 2, other=1.0)[:, None]
    sin = tl.load(rotation_ptr + ROTARY_DIM // 2, mask=pair < ROTARY_DIM // 2, other=0.0)[:, None]
    moved_real = first * cos + second * sin
    moved_imaginary = first * sin - second * cos
    return (
        moved_real * real - moved_imaginary * imaginary,
        -(moved_real * imaginary + moved_imaginary * real),
    )


@triton.jit
def for_all_rows(of_head, GROUP_TILE: tl.constexpr, TERMS: tl.constexpr, ROWS_PER_KV: tl.constexpr):
    """``[n, TERMS * ROWS_PER_KV]`` repeated for every head: ``[n, TERMS * GROUP_TILE * ROWS_PER_KV]``."""
    n: tl.constexpr = of_head.shape[0]
    apart = tl.reshape(of_head, [n, TERMS, 1, ROWS_PER_KV])
    return tl.reshape(
        tl.broadcast_to(apart, [n, TERMS, GROUP_TILE, ROWS_PER_KV]), [n, TERMS * GROUP_TILE * ROWS_PER_KV]
    )


@triton.jit
def add_absorbed(
    products,  # [TILE_TOKENS, TERMS * TILE_ROWS] float32
    latent,  # [TILE_TOKENS, TILE_RANK], the tile of ranks from rank_start on
    rank_start,
    up_ptr,  # the columns of k_up from the first head on
    stride_k_up_rank,
    query_ptr,
    stride_query_token,
    stride_query_head,
    query_len,
    position,
    cos_sin_ptr,
    coefficients_ptr,
    GROUP_SIZE: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    RANK_K: tl.constexpr,
    FAST: tl.constexpr,
    TILE_SLOW: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS_PER_KV: tl.constexpr,
):
    """``products + latent u`` over one tile of ranks."""
    COLUMNS: tl.constexpr = products.shape[1]
    GROUP_TILE: tl.constexpr = COLUMNS // (TERMS * ROWS_PER_KV)
    rank = rank_start + tl.arange(0, latent.shape[1])
    pair = FAST + tl.arange(0, TILE_SLOW)
    mask = (rank < RANK_K)[:, None] & (pair < HEAD_DIM // 2)[None, :]
    first_column, second_column = columns_of_pairs(pair, HEAD_DIM, ROTARY_DIM)
    head_of_column = tl.arange(0, COLUMNS) // ROWS_PER_KV % GROUP_TILE
    # [TILE_RANK, COLUMNS]
    u = tl.zeros([latent.shape[1], COLUMNS], latent.dtype)
    for head in tl.range(GROUP_SIZE, disable_licm=True):
        to_first, to_second = moved_query(
            query_ptr, stride_query_token, stride_query_head, query_len, head, position, cos_sin_ptr, coefficients_ptr,
            QUERIES_PER_KV=QUERIES_PER_KV, HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM, FAST=FAST, TILE_SLOW=TILE_SLOW,
            TERMS=TERMS, ROWS_PER_KV=ROWS_PER_KV,
        )  # fmt: skip
        # [TILE_RANK, TILE_SLOW]
        rank_ptrs = up_ptr + head * HEAD_DIM + rank[:, None] * stride_k_up_rank
        up_first = tl.load(rank_ptrs + first_column[None, :], mask=mask, other=0.0).to(latent.dtype)
        up_second = tl.load(rank_ptrs + second_column[None, :], mask=mask, other=0.0).to(latent.dtype)
        # [TILE_RANK, TERMS * ROWS_PER_KV]
        of_head = tl.dot(up_first, to_first.to(latent.dtype), input_precision="ieee")
        of_head = tl.dot(up_second, to_second.to(latent.dtype), of_head, input_precision="ieee")
        repeated = for_all_rows(of_head.to(latent.dtype), GROUP_TILE, TERMS, ROWS_PER_KV)
        u = tl.where((head_of_column == head)[None, :], repeated, u)
    return tl.dot(latent, u, products, input_precision="ieee")


@triton.jit
def absorbed_bias(
    bias_ptr,  # of the first KV head
    query_ptr,
    stride_query_token,
    stride_query_head,
    query_len,
    position,
    cos_sin_ptr,
    coefficients_ptr,
    GROUP_SIZE: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    FAST: tl.constexpr,
    TILE_SLOW: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS_PER_KV: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What the key bias adds to every product of a column, float32 ``[COLUMNS]``."""
    HALF: tl.constexpr = HEAD_DIM // 2
    GROUP_TILE: tl.constexpr = COLUMNS // (TERMS * ROWS_PER_KV)
    pair = FAST + tl.arange(0, TILE_SLOW)
    first_column, second_column = columns_of_pairs(pair, HEAD_DIM, ROTARY_DIM)
    head_of_column = tl.arange(0, COLUMNS) // ROWS_PER_KV % GROUP_TILE
    added = tl.zeros([COLUMNS], tl.float32)
    for head in tl.range(GROUP_SIZE, disable_licm=True):
        to_first, to_second = moved_query(
            query_ptr, stride_query_token, stride_query_head, query_len, head, position, cos_sin_ptr, coefficients_ptr,
            QUERIES_PER_KV=QUERIES_PER_KV, HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM, FAST=FAST, TILE_SLOW=TILE_SLOW,
            TERMS=TERMS, ROWS_PER_KV=ROWS_PER_KV,
        )  # fmt: skip
        head_ptr = bias_ptr + head * HEAD_DIM
        first = tl.load(head_ptr + first_column, mask=pair < HALF, other=0.0).to(tl.float32)
        second = tl.load(head_ptr + second_column, mask=pair < HALF, other=0.0).to(tl.float32)
        of_head = tl.sum(to_first * first[:, None] + to_second * second[:, None], axis=0)
        repeated = tl.reshape(for_all_rows(of_head[None, :], GROUP_TILE, TERMS, ROWS_PER_KV), [COLUMNS])
        added = tl.where(head_of_column == head, repeated, added)
    return added


@triton.jit
def absorbed_scores(
    latent,  # [TILE_TOKENS, TILE_RANK], the first tile of ranks
    slot_ptrs,  # [TILE_TOKENS] pointers to the slots of one group
    valid,  # [TILE_TOKENS]
    up_ptr,  # the columns of k_up from the first head of the program on
    stride_k_up_rank,
    bias_ptr,  # None, or of the first KV head of the program
    query_ptr,  # of the first query and head of the program
    stride_query_token,
    stride_query_head,
    query_len,
    position,  # first of the tile
    cos_sin_ptr,
    basis_ptr,  # [TERMS, TILE_TOKENS] float32
    coefficients_ptr,  # [2, TERMS, HEAD_DIM // 2 - FAST] float32: real, then imaginary parts
    GROUP_SIZE: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    RANK_K: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FAST: tl.constexpr,
    TILE_SLOW: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS_PER_KV: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """``sum_t phi_t(d) (u_t . latent_d)`` for the pairs from ``FAST`` on, float32 ``[TILE_TOKENS, TILE_ROWS]``."""
    TILE_TOKENS: tl.constexpr = latent.shape[0]
    TILE_RANK: tl.constexpr = latent.shape[1]
    COLUMNS: tl.constexpr = TERMS * TILE_ROWS
    # [TILE_TOKENS, COLUMNS]
    products = tl.zeros([TILE_TOKENS, COLUMNS], tl.float32)
    for rank_start in tl.static_range(0, RANK_K, TILE_RANK):
        if rank_start > 0:
            latent = load_latent(slot_ptrs, valid, rank_start, latent.dtype, RANK_K, TILE_RANK, FORMAT_K)
        products = add_absorbed(
            products, latent, rank_start, up_ptr, stride_k_up_rank, query_ptr, stride_query_token, stride_query_head,
            query_len, position, cos_sin_ptr, coefficients_ptr, GROUP_SIZE=GROUP_SIZE, QUERIES_PER_KV=QUERIES_PER_KV,
            HEAD_DIM=HEAD_DIM, ROTARY_DIM=ROTARY_DIM, RANK_K=RANK_K, FAST=FAST, TILE_SLOW=TILE_SLOW, TERMS=TERMS,
            ROWS_PER_KV=ROWS_PER_KV,
        )  # fmt: skip
    if bias_ptr is not None:
        products += absorbed_bias(
            bias_ptr, query_ptr, stride_query_token, stride_query_head, query_len, position, cos_sin_ptr,
            coefficients_ptr, GROUP_SIZE=GROUP_SIZE, QUERIES_PER_KV=QUERIES_PER_KV, HEAD_DIM=HEAD_DIM,
            ROTARY_DIM=ROTARY_DIM, FAST=FAST, TILE_SLOW=TILE_SLOW, TERMS=TERMS, ROWS_PER_KV=ROWS_PER_KV,
            COLUMNS=COLUMNS,
        )[None, :]  # fmt: skip
    term = tl.arange(0, TERMS)
    # [TILE_TOKENS, TERMS]
    basis = tl.load(basis_ptr + term[None, :] * TILE_TOKENS + tl.arange(0, TILE_TOKENS)[:, None])
    return tl.sum(tl.reshape(products, [TILE_TOKENS, TERMS, TILE_ROWS]) * basis[:, :, None], axis=1)
