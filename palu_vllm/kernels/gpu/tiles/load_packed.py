"""Reading packed latents in a kernel: bytes as in ``palu_vllm.format.latent_format``, unpacked in registers.

A format is the constant of ``arguments.packed_format``: (bytes of scales and minima, bytes used, bytes, type of numbers
that are not quantized, whether codes are symmetric), then its tiers, equal neighbours joined, each (first number, size,
how many, bits, byte of the first scale, byte of the first payload).
"""

import triton
import triton.language as tl


@triton.jit
def load_numbers(part_ptrs, valid, columns, wanted, dtype, FORMAT: tl.constexpr):
    """Numbers ``columns`` of each part, ``[TILE_TOKENS, columns]``; zero where not ``valid`` and not ``wanted``.

    In ``dtype`` where parts are packed, otherwise in that of the cache.
    """
    if FORMAT is None:
        mask = valid[:, None] & wanted[None, :]
        numbers = tl.load(part_ptrs[:, None] + columns[None, :], mask=mask, other=0.0)
    else:
        # [TILE_TOKENS, columns]
        numbers = tl.zeros([part_ptrs.shape[0], columns.shape[0]], dtype)
        for index in tl.static_range(1, len(FORMAT)):
            numbers = load_tiers(
                numbers, part_ptrs, valid, columns, wanted, FIRST=FORMAT[index][0], SIZE=FORMAT[index][1],
                COUNT=FORMAT[index][2], BITS=FORMAT[index][3], HEADER=FORMAT[index][4], PAYLOAD=FORMAT[index][5],
                NUMBER_TYPE=FORMAT[0][3], SYMMETRIC=FORMAT[0][4],
            )  # fmt: skip
    return numbers


@triton.jit
def load_tiers(
    numbers,  # [TILE_TOKENS, columns], of the other tiers
    part_ptrs,  # [TILE_TOKENS]
    valid,  # [TILE_TOKENS]
    columns,  # [columns] of the latent
    wanted,  # [columns]
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    HEADER: tl.constexpr,
    PAYLOAD: tl.constexpr,
    NUMBER_TYPE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """``numbers`` with those of ``COUNT`` equal tiers filled in."""
    number = columns - FIRST
    inside = wanted & (number >= 0) & (number < COUNT * SIZE)
    mask = valid[:, None] & inside[None, :]
    if BITS == 16:
        stored_ptrs = (part_ptrs + PAYLOAD).to(tl.pointer_type(NUMBER_TYPE), bitcast=True)
        read = tl.load(stored_ptrs[:, None] + number[None, :], mask=mask, other=0.0).to(numbers.dtype)
    else:
        if BITS == 3:
            LOW: tl.constexpr = (SIZE * 2 + 7) // 8
            STRIDE: tl.constexpr = LOW + (SIZE + 7) // 8
            codes = load_plane(part_ptrs, number, mask, PAYLOAD, SIZE, COUNT, STRIDE, 2)
            codes |= load_plane(part_ptrs, number, mask, PAYLOAD + LOW, SIZE, COUNT, STRIDE, 1) << 2
        else:
            codes = load_plane(part_ptrs, number, mask, PAYLOAD, SIZE, COUNT, (SIZE * BITS + 7) // 8, BITS)
        scale, minimum = load_scales(part_ptrs, valid, number, inside, SIZE, COUNT, HEADER, SYMMETRIC)
        # [TILE_TOKENS, columns]
        if SYMMETRIC:
            read = ((codes - 2 ** (BITS - 1)).to(tl.float32) * scale).to(numbers.dtype)
        else:
            read = (codes.to(tl.float32) * scale + minimum).to(numbers.dtype)
    return tl.where(inside[None, :], read, numbers)


@triton.jit
def load_scales(
    part_ptrs,  # [TILE_TOKENS]
    valid,  # [TILE_TOKENS]
    number,  # [columns] of the tiers
    inside,  # [columns]
    SIZE: tl.constexpr,
    COUNT: tl.constexpr,
    HEADER: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Scales and minima of the numbers ``number``, float32 ``[TILE_TOKENS, columns]``, or ``[TILE_TOKENS, 1]`` where
    they are of one tier; of symmetric codes the scales twice.
    """
    WORD: tl.constexpr = tl.uint16 if SYMMETRIC else tl.uint32
    header_ptrs = (part_ptrs + HEADER).to(tl.pointer_type(WORD), bitcast=True)
    if COUNT == 1:
        # [TILE_TOKENS, 1]
        header = tl.load(header_ptrs, mask=valid, other=0)[:, None]
    else:
        # [TILE_TOKENS, columns]
        mask = valid[:, None] & inside[None, :]
        header = tl.load(header_ptrs[:, None] + (number // SIZE)[None, :], mask=mask, other=0)
    scale = header.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    minimum = scale
    if not SYMMETRIC:
        minimum = (header >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale, minimum


@triton.jit
def load_plane(
    part_ptrs,
    number,
    mask,
    START: tl.constexpr,
    SIZE: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``WIDTH`` bits of each of the numbers ``number`` of tiers, int32 ``[TILE_TOKENS, columns]``; the first plane
    begins at byte ``START``, the next ``STRIDE`` bytes on.
    """
    BYTES: tl.constexpr = (SIZE * WIDTH + 7) // 8
    aligned: tl.constexpr = START % 4 == 0 and (COUNT == 1 or STRIDE % 4 == 0)
    if COUNT == 1:
        place = number
        pointers = (part_ptrs + START)[:, None] + (place % BYTES)[None, :]
    else:
        place = number % SIZE
        pointers = (part_ptrs + START)[:, None] + (number // SIZE * STRIDE + place % BYTES)[None, :]
    if aligned:
        pointers = tl.multiple_of(pointers, (1, 4))  # parts are aligned; runs of neighbours are found by the compiler
    packed = tl.load(pointers, mask=mask, other=0).to(tl.int32)
    shift = (place // BYTES * WIDTH) & 7
    return (packed >> shift[None, :]) & ((1 << WIDTH) - 1)
