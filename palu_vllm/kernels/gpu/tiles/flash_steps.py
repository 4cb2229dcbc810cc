"""The steps of flash attention over plain keys and values, for prefill: one row per query and head.

A program has the sums of some columns of the latent values as a tuple of tiles ``[TILE_ROWS, TILE_VALUES]``, float32.
"""

import triton
import triton.language as tl


@triton.jit
def softmax_step(scores, running_max, running_sum):
    """One tile of online softmax over axis 1, for scores in units of log 2 and -inf where a row sees no token.

    Returns the unnormalised probabilities, the factor for what was accumulated so far, the new maximum and sum.
    """
    new_max = tl.maximum(running_max, tl.max(scores, axis=1))
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    probabilities = tl.exp2(scores - shift[:, None])
    correction = tl.exp2(running_max - shift)
    return probabilities, correction, new_max, running_sum * correction + tl.sum(probabilities, axis=1)


@triton.jit
def capped(scores, SOFT_CAP_LOG2: tl.constexpr):
    """``cap tanh(x / cap)`` in units of log 2, of ``scores`` that are ``2 x / (cap ln 2)``; without a cap no change."""
    if SOFT_CAP_LOG2 is not None:
        scores = SOFT_CAP_LOG2 * (1.0 - 2.0 / (1.0 + tl.exp2(scores)))
    return scores


@triton.jit
def add_values(accumulated, correction, probabilities, value_ptr, row_offsets, columns, RANK_V: tl.constexpr):
    """``accumulated * correction + probabilities @ values``, tile by tile of the columns of the latent values."""
    added = ()
    for index in tl.static_range(len(accumulated)):
        column = columns + index * columns.shape[0]
        # [TILE_TOKENS, TILE_VALUES]
        values = tl.load(
            value_ptr + (row_offsets[:, None] + column[None, :]), mask=(column < RANK_V)[None, :], other=0.0
        )
        corrected = accumulated[index] * correction[:, None]
        added = added + (tl.dot(probabilities.to(values.dtype), values, corrected, input_precision="ieee"),)
    return added


@triton.jit
def carried_values(carried_ptr, row_offsets, row_carried, columns, RANK_V: tl.constexpr, VALUE_TILES: tl.constexpr):
    """Sums of values ``[TILE_ROWS, TILE_VALUES]`` of the passes before, ``VALUE_TILES`` of them; zeros in the first."""
    tiles = ()
    for index in tl.static_range(VALUE_TILES):
        column = columns + index * columns.shape[0]
        if carried_ptr is None:
            tile = tl.zeros([row_offsets.shape[0], columns.shape[0]], tl.float32)
        else:
            pointers = carried_ptr + row_offsets.to(tl.int64)[:, None] * RANK_V + column[None, :]
            tile = tl.load(pointers, mask=row_carried[:, None] & (column < RANK_V)[None, :], other=0.0)
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def divided(accumulated, sums):
    """Tiles of values ``[TILE_ROWS, TILE_VALUES]`` over ``sums [TILE_ROWS]``."""
    tiles = ()
    for index in tl.static_range(len(accumulated)):
        tiles = tiles + (accumulated[index] / sums[:, None],)
    return tiles


@triton.jit
def store_values(accumulated, row_ptrs, row_valid, columns, RANK_V: tl.constexpr):
    """Tiles of values ``[TILE_ROWS, TILE_VALUES]`` to the rows ``row_ptrs``."""
    for index in tl.static_range(len(accumulated)):
        column = columns + index * columns.shape[0]
        numbers = accumulated[index].to(row_ptrs.dtype.element_ty)
        tl.store(row_ptrs[:, None] + column[None, :], numbers, mask=row_valid[:, None] & (column < RANK_V)[None, :])
