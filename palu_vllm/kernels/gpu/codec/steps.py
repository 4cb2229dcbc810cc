"""The steps of attention over one tile of codes: scores, softmax, means of levels. A row is one query of one head.

Scores are ``[TILE_ROWS, TILE_TOKENS]``: codes are the second operand of both products and stay in registers. Queries
are in the basis of the codes, in columns as ``layout`` says, so that scores come out in units of log 2.
"""

import triton
import triton.language as tl

from palu_vllm.format.codec.positions import BLOCK
from palu_vllm.kernels.gpu.codec.load_codes import load_levels
from palu_vllm.kernels.gpu.tiles.flash_steps import capped, softmax_step

WIDTH = tl.constexpr(32)
POSITIONS = tl.constexpr(BLOCK)  # of one block


@triton.jit
def load_queries(row_ptrs, row_valid, dtype: tl.constexpr, TILES_K: tl.constexpr):
    """The rows of every part of the keys' codes, a tuple of ``[TILE_ROWS, columns]``; zero where there is no row."""
    queries = ()
    for index in tl.static_range(len(TILES_K)):
        for part in tl.static_range(parts_of(TILES_K[index][0])):
            column = TILES_K[index][4] + part * TILES_K[index][3] + tl.arange(0, TILES_K[index][3])
            numbers = tl.load(row_ptrs[:, None] + column[None, :], mask=row_valid[:, None], other=0.0)
            queries = queries + (numbers.to(dtype),)
    return queries


@triton.constexpr_function
def parts_of(bits):
    return {2: 4, 3: 4, 4: 2, 5: 2}.get(bits, 1)


@triton.jit
def find_rows(row, group, token, query_len, seq_len, tokens_in_batch, GROUP_SIZE: tl.constexpr,
              QUERIES_PER_KV: tl.constexpr):  # fmt: skip
    """Of rows ``[TILE_ROWS]`` of a request, whose first query is ``token`` of the batch: heads within the group, which
    rows there are, positions of their queries, -1 where there is none, and their places among queries and means.
    """
    HEADS: tl.constexpr = GROUP_SIZE * QUERIES_PER_KV
    query, head = row // HEADS, row % HEADS
    row_valid = query < query_len
    position = tl.where(row_valid, seq_len - query_len + query, -1)
    kv_head = group.to(tl.int64) * GROUP_SIZE + head // QUERIES_PER_KV
    place = (kv_head * tokens_in_batch + token + query) * QUERIES_PER_KV + head % QUERIES_PER_KV
    return head, row_valid, position, place


@triton.jit
def nothing_seen(TILE_ROWS: tl.constexpr, TILES_V: tl.constexpr):
    """What ``attend_tile`` begins with: means of levels, maxima, sums of weights, of those around the sinks' centre."""
    means = ()
    for index in tl.static_range(len(TILES_V)):
        for _ in tl.static_range(parts_of(TILES_V[index][0])):
            means = means + (no_mean(TILE_ROWS, TILES_V[index][3]),)
    weights = tl.zeros([TILE_ROWS], tl.float32)
    return means, tl.full([TILE_ROWS], float("-inf"), tl.float32), weights, weights


@triton.jit
def no_mean(TILE_ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of one part. Triton 3.6 takes no number out of a tuple into a shape."""
    return tl.zeros([TILE_ROWS, COLUMNS], tl.float32)


@triton.jit
def load_scales(slot_ptrs, valid):
    """The sizes of the scales of K and V, float32 ``[TILE_TOKENS]``, and whether they belong to the sinks' centre."""
    word = tl.load(slot_ptrs.to(tl.pointer_type(tl.uint32), bitcast=True), mask=valid, other=0)
    size_k = (word & 0x7FFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    size_v = (word >> 16 & 0x7FFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return size_k, (word & 0x8000) != 0, size_v, (word >> 31) != 0


@triton.jit
def usual_scores(row_ptrs, row_valid, blocks_ptr, tile_start, num_blocks, FEATURES: tl.constexpr,
                 TILE_TOKENS: tl.constexpr):  # fmt: skip
    """Scores with the usual centres, ``[TILE_ROWS, TILE_TOKENS]``: a product per block of positions, in tf32.

    A product is made wider than it has rows, so every block stands in it as often as makes ``COLUMNS``.
    """
    COLUMNS: tl.constexpr = WIDTH if TILE_TOKENS > WIDTH else TILE_TOKENS
    feature, column = tl.arange(0, FEATURES), tl.arange(0, COLUMNS)
    block = tile_start // POSITIONS + column * (TILE_TOKENS // 16) // COLUMNS
    there = block < num_blocks
    # [FEATURES, COLUMNS]
    table = tl.load(blocks_ptr + block[None, :] * FEATURES + feature[:, None], mask=there[None, :], other=0.0)
    folded = tl.load(row_ptrs[:, None] + feature[None, :], mask=row_valid[:, None], other=0.0)
    scores = tl.dot(folded, table, input_precision="tf32")
    REPEATS: tl.constexpr = TILE_TOKENS // COLUMNS
    repeated = tl.broadcast_to(scores[:, :, None], [scores.shape[0], COLUMNS, REPEATS])
    return tl.reshape(repeated, [scores.shape[0], TILE_TOKENS])


@triton.jit
def add_products(scores, queries, slot_ptrs, valid, levels_ptr, dtype: tl.constexpr, TILES_K: tl.constexpr):
    """``scores`` plus queries times the levels of keys."""
    for index in tl.static_range(len(TILES_K)):
        levels = load_levels(
            slot_ptrs, valid, levels_ptr, dtype, TILES_K[index][0], TILES_K[index][1], TILES_K[index][2],
            TILES_K[index][3],
        )  # fmt: skip
        for part in tl.static_range(len(levels)):
            query = queries[TILES_K[index][5] + part]
            scores = tl.dot(query, tl.trans(levels[part]), scores, input_precision="ieee")
    return scores


@triton.jit
def add_means(means, weights, correction, slot_ptrs, valid, levels_ptr, dtype: tl.constexpr, TILES_V: tl.constexpr):
    """``means * correction + weights @ levels`` of values, part by part."""
    added = ()
    weights = weights.to(dtype)
    for index in tl.static_range(len(TILES_V)):
        levels = load_levels(
            slot_ptrs, valid, levels_ptr, dtype, TILES_V[index][0], TILES_V[index][1], TILES_V[index][2],
            TILES_V[index][3],
        )  # fmt: skip
        for part in tl.static_range(len(levels)):
            corrected = means[TILES_V[index][5] + part] * correction[:, None]
            added = added + (tl.dot(weights, levels[part], corrected, input_precision="ieee"),)
    return added


@triton.jit
def attend_tile(
    state,  # means of levels, maxima, sums of weights, of those around the sinks' centre
    queries, row_ptrs, row_valid, position, sink_score, tile_start, table_row_ptr, group_ptr, levels_ptr, blocks_ptr,
    num_blocks, seq_len, stride_cache_block, stride_cache_slot,
    dtype: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILES_K: tl.constexpr, TILES_V: tl.constexpr,
    FEATURES_START: tl.constexpr, FEATURES: tl.constexpr, SLIDING_WINDOW: tl.constexpr, SOFT_CAP_LOG2: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
):  # fmt: skip
    """``state`` after one more tile of tokens."""
    means, running_max, running_sum, of_sink = state
    # [TILE_TOKENS]
    tokens = tile_start + tl.arange(0, TILE_TOKENS)
    valid = tokens < seq_len
    block = tl.load(table_row_ptr + tokens // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    slot_ptrs = group_ptr + (block * stride_cache_block + tokens % BLOCK_SIZE * stride_cache_slot)
    size_k, sink_k, size_v, sink_v = load_scales(slot_ptrs, valid)
    # [TILE_ROWS, TILE_TOKENS]
    scores = tl.zeros([position.shape[0], TILE_TOKENS], tl.float32)
    scores = add_products(scores, queries, slot_ptrs, valid, levels_ptr, dtype, TILES_K)
    usual = usual_scores(
        row_ptrs + FEATURES_START, row_valid, blocks_ptr, tile_start, num_blocks, FEATURES, TILE_TOKENS
    )
    scores = scores * size_k[None, :] + tl.where(sink_k[None, :], sink_score[:, None], usual)
    distance = position[:, None] - tokens[None, :]
    seen = distance >= 0
    if SLIDING_WINDOW is not None:
        seen &= distance < SLIDING_WINDOW
    scores = tl.where(seen, capped(scores, SOFT_CAP_LOG2), float("-inf"))
    probabilities, correction, running_max, running_sum = softmax_step(scores, running_max, running_sum)
    of_sink = of_sink * correction + tl.sum(tl.where(sink_v[None, :], probabilities, 0.0), axis=1)
    weights = tl.where(probabilities == 0.0, 0.0, probabilities * size_v[None, :])  # unseen scales may be any number
    means = add_means(means, weights, correction, slot_ptrs, valid, levels_ptr, dtype, TILES_V)
    return means, running_max, running_sum, of_sink


@triton.jit
def store_row_numbers(means, row_ptrs, row_valid, TILES_V: tl.constexpr):
    """Means ``[TILE_ROWS, columns]`` of every part to the rows ``row_ptrs``."""
    for index in tl.static_range(len(TILES_V)):
        for part in tl.static_range(parts_of(TILES_V[index][0])):
            column = TILES_V[index][4] + part * TILES_V[index][3] + tl.arange(0, TILES_V[index][3])
            tl.store(row_ptrs[:, None] + column[None, :], means[TILES_V[index][5] + part], mask=row_valid[:, None])


@triton.jit
def store_finished(state, row_ptrs, row_valid, sink_ptrs, TILES_V: tl.constexpr, COLUMNS_V: tl.constexpr):
    """Means of levels and the shares of both centres, to the rows ``row_ptrs``; ``sink_ptrs`` are those of scores of no
    token in units of log 2, or None.
    """
    means, running_max, running_sum, of_sink = state
    total = running_sum
    if sink_ptrs is not None:
        sink = tl.load(sink_ptrs, mask=row_valid, other=0.0)
        total += tl.exp2(sink - running_max)
    normalised = ()
    for part in tl.static_range(len(means)):
        normalised = normalised + (means[part] / total[:, None],)
    store_row_numbers(normalised, row_ptrs, row_valid, TILES_V)
    tl.store(row_ptrs + COLUMNS_V, (running_sum - of_sink) / total, mask=row_valid)
    tl.store(row_ptrs + COLUMNS_V + 1, of_sink / total, mask=row_valid)
