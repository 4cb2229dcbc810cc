"""Joins the pieces of rows whose items lie in the ranges of several programs of decoding."""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.codec.steps import find_rows
from palu_vllm.kernels.gpu.codec.work import VARYING, find_item, piece_states


@triton.jit
def piece_of(index, program):
    """The number of piece ``index`` of rows that ``program`` begins; those after it continue them first of all."""
    return tl.where(index == 0, 2 * program + 1, 2 * (program + index)).to(tl.int64)


@triton.jit
def joined_maximum(piece_state_ptr, program, row, pieces, TILE_ROWS: tl.constexpr, TILE_PIECES: tl.constexpr):
    """The largest score of one row in all its pieces."""
    largest = float("-inf")
    for start in range(0, pieces, TILE_PIECES):
        index = start + tl.arange(0, TILE_PIECES)
        pointers = piece_state_ptr + piece_of(index, program) * (3 * TILE_ROWS) + row
        largest = tl.maximum(largest, tl.max(tl.load(pointers, mask=index < pieces, other=float("-inf")), axis=0))
    return largest


@triton.jit(do_not_specialize=VARYING)
def reduce_pieces_kernel(
    item_starts_ptr,  # [requests + 1] int32
    seq_lens_ptr,  # [requests] int32
    query_start_loc_ptr,  # [requests + 1] int32
    piece_ptr,  # float32: [2 * programs, TILE_ROWS, COLUMNS_V], not normalised, then their states, see piece_states
    sinks_ptr,  # None, or [num_heads] float32, in units of log 2
    means_ptr,  # [kv_heads, tokens, QUERIES_PER_KV, COLUMNS_V + 2] float32
    num_requests,
    tokens_in_batch,
    GROUP_SIZE: tl.constexpr,
    QUERIES_PER_KV: tl.constexpr,
    COLUMNS_V: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_PIECES: tl.constexpr,
):
    """One program: some columns of one row that a program of decoding began and did not finish."""
    HEADS: tl.constexpr = GROUP_SIZE * QUERIES_PER_KV
    program, row = tl.program_id(0), tl.program_id(1)
    total = tl.load(item_starts_ptr + num_requests)
    per_program = tl.cdiv(total, tl.num_programs(0))
    end = tl.minimum((program + 1) * per_program, total)
    if program * per_program >= end:
        return
    request, group, first_row, tile, tiles, _, token, query_len, seq_len = find_item(
        end - 1, item_starts_ptr, seq_lens_ptr, query_start_loc_ptr, num_requests, HEADS, SLIDING_WINDOW, TILE_TOKENS,
        TILE_ROWS,
    )  # fmt: skip
    begin = end - 1 - tile
    head, row_valid, _, place = find_rows(
        first_row + row, group, token, query_len, seq_len, tokens_in_batch, GROUP_SIZE, QUERIES_PER_KV
    )
    if (begin < program * per_program) | (tile == tiles - 1) | ~row_valid:
        return
    pieces = (begin + tiles - 1) // per_program - program + 1
    piece_state_ptr = piece_states(piece_ptr, TILE_ROWS, COLUMNS_V)
    largest = joined_maximum(piece_state_ptr, program, row, pieces, TILE_ROWS, TILE_PIECES)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    # [TILE_COLUMNS]
    column = tl.program_id(2) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    sums = tl.zeros([TILE_COLUMNS], tl.float32)
    total_weight, of_sink = 0.0, 0.0
    for start in range(0, pieces, TILE_PIECES):
        # [TILE_PIECES]
        index = start + tl.arange(0, TILE_PIECES)
        there = index < pieces
        piece = piece_of(index, program)
        state_ptrs = piece_state_ptr + piece * (3 * TILE_ROWS) + row
        weight = tl.exp2(tl.load(state_ptrs, mask=there, other=float("-inf")) - shift)
        total_weight += tl.sum(weight * tl.load(state_ptrs + TILE_ROWS, mask=there, other=0.0), axis=0)
        of_sink += tl.sum(weight * tl.load(state_ptrs + 2 * TILE_ROWS, mask=there, other=0.0), axis=0)
        pointers = piece_ptr + (piece * TILE_ROWS + row)[:, None] * COLUMNS_V + column[None, :]
        means = tl.load(pointers, mask=there[:, None] & (column < COLUMNS_V)[None, :], other=0.0)
        sums += tl.sum(weight[:, None] * means, axis=0)
    divisor = total_weight
    if sinks_ptr is not None:
        divisor += tl.exp2(tl.load(sinks_ptr + group * HEADS + head) - shift)
    out_ptr = means_ptr + place * (COLUMNS_V + 2)
    tl.store(out_ptr + column, sums / divisor, mask=column < COLUMNS_V)
    if tl.program_id(2) == 0:
        tl.store(out_ptr + COLUMNS_V, (total_weight - of_sink) / divisor)
        tl.store(out_ptr + COLUMNS_V + 1, of_sink / divisor)
