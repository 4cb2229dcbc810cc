"""Reading codes in a kernel: a tile of bytes is loaded once and gives one tile of levels per part.

A tile is described by ``layout.code_tiles``. In Triton's interpreter, and for tiers of no whole number of bytes, levels
are read from their table; otherwise ``look_up`` permutes bytes.
"""

import os

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.codec.look_up import permuted_levels

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def load_bytes(slot_ptrs, byte, wanted, START: tl.constexpr):
    """Bytes from ``START`` on of every slot, uint8 ``[TILE_TOKENS, bytes]``."""
    pointers = (slot_ptrs + START)[:, None] + byte[None, :]
    if START % 4 == 0:
        pointers = tl.multiple_of(pointers, (1, 4))  # slots are aligned; runs of neighbours are found by the compiler
    return tl.load(pointers, mask=wanted[None, :], other=0)


@triton.jit
def mask_of(bit, byte, HIGH_BYTES: tl.constexpr):
    """255 where the high bits of a byte of the low plane are to be shifted by ``bit``, uint8 ``[1, bytes]``: byte i has
    its high bits from bit ``i // HIGH_BYTES`` on.
    """
    return tl.where(((byte // HIGH_BYTES) & bit) != 0, 255, 0).to(tl.uint8)[None, :]


@triton.jit
def levels_from_table(
    slot_ptrs, low, byte, levels_ptr, dtype: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr, BYTES: tl.constexpr,
    HIGH_START: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Levels of every part, ``[TILE_TOKENS, columns]`` each, from ``levels_ptr``."""
    HIGH_BYTES: tl.constexpr = (SIZE + 7) // 8
    levels = ()
    for part in tl.static_range(8 // WIDTH):
        number = part * BYTES + byte
        code = (low.to(tl.int32) >> (part * WIDTH)) & ((1 << WIDTH) - 1)
        if BITS != WIDTH:
            high = load_bytes(slot_ptrs, number % HIGH_BYTES, number < SIZE, HIGH_START)
            code |= ((high.to(tl.int32) >> (number // HIGH_BYTES)[None, :]) & 1) << WIDTH
        levels = levels + (tl.load(levels_ptr + (1 << BITS) + code).to(dtype),)
    return levels


@triton.jit
def load_levels(
    slot_ptrs,  # [TILE_TOKENS], of tokens that are not there the first slot of the cache
    valid,  # [TILE_TOKENS]
    levels_ptr,  # [128] float32: those of b bits from 2^b on
    dtype: tl.constexpr,
    BITS: tl.constexpr,
    SIZE: tl.constexpr,
    START: tl.constexpr,
    TILE: tl.constexpr,
):
    """The parts of one tier, a tuple of ``[TILE_TOKENS, TILE]``: levels, or numbers that are not quantized, zero where
    there is no token. Levels of columns without a number, and of quantized codes without a token, are any.
    """
    # [TILE]
    byte = tl.arange(0, TILE)
    if BITS == 16:
        pointers = (slot_ptrs + START).to(tl.pointer_type(tl.float16), bitcast=True)[:, None] + byte[None, :]
        levels = (tl.load(pointers, mask=valid[:, None] & (byte < SIZE)[None, :], other=0.0).to(dtype),)
    elif BITS == 8:
        codes = load_bytes(slot_ptrs, byte, byte < SIZE, START) ^ 128
        levels = (codes.to(tl.int8, bitcast=True).to(tl.float32).to(dtype),)
    else:
        WIDTH: tl.constexpr = 2 if BITS < 4 else 4
        BYTES: tl.constexpr = (SIZE * WIDTH + 7) // 8
        HIGH_START: tl.constexpr = START + BYTES
        low = load_bytes(slot_ptrs, byte, byte < BYTES, START)
        if INTERPRETED or SIZE % 8 != 0:
            levels = levels_from_table(slot_ptrs, low, byte, levels_ptr, dtype, BITS, SIZE, BYTES, HIGH_START, WIDTH)
        else:
            high = low
            if BITS != WIDTH:
                high = load_bytes(slot_ptrs, byte % (SIZE // 8), byte < BYTES, HIGH_START)
            KIND: tl.constexpr = tl.float16 if dtype == tl.float16 else tl.bfloat16
            by_1, by_2 = mask_of(1, byte, SIZE // 8), mask_of(2, byte, SIZE // 8)
            bits = permuted_levels(low, high, by_1, by_2, BITS, KIND)
            levels = ()
            for part in tl.static_range(8 // WIDTH):
                levels = levels + (bits[part].to(KIND, bitcast=True).to(dtype),)
    return levels
