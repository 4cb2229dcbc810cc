"""Reading packed latents in a kernel: bytes as in ``palu_vllm.latent_format``, unpacked in registers.

A format is the constant of ``arguments.packed_format``: (bytes used, bytes, type of numbers that are not quantized),
then its tiers, each (first number, size, bits, byte of its scale, byte of its payload); None for numbers as they are.
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
            numbers = load_tier(
                numbers,
                part_ptrs,
                valid,
                columns,
                wanted,
                FORMAT[index][0],
                FORMAT[index][1],
                FORMAT[index][2],
                FORMAT[index][3],
                FORMAT[index][4],
                FORMAT[0][2],
            )
    return numbers


@triton.jit
def load_tier(
    numbers,  # [TILE_TOKENS, columns], of the other tiers
    part_ptrs,  # [TILE_TOKENS]
    valid,  # [TILE_TOKENS]
    columns,  # [columns] of the latent
    wanted,  # [columns]
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
    HEADER: tl.constexpr,
    PAYLOAD: tl.constexpr,
    NUMBER_TYPE: tl.constexpr,
):
    """``numbers`` with those of one tier filled in."""
    number = columns - FIRST
    inside = wanted & (number >= 0) & (number < SIZE)
    mask = valid[:, None] & inside[None, :]
    if BITS == 16:
        stored_ptrs = (part_ptrs + PAYLOAD).to(tl.pointer_type(NUMBER_TYPE), bitcast=True)
        read = tl.load(stored_ptrs[:, None] + number[None, :], mask=mask, other=0.0).to(numbers.dtype)
    else:
        if BITS == 3:
            codes = load_plane(part_ptrs, number, mask, PAYLOAD, SIZE, 2)
            codes |= load_plane(part_ptrs, number, mask, PAYLOAD + (SIZE * 2 + 7) // 8, SIZE, 1) << 2
        else:
            codes = load_plane(part_ptrs, number, mask, PAYLOAD, SIZE, BITS)
        # [TILE_TOKENS]
        header = tl.load((part_ptrs + HEADER).to(tl.pointer_type(tl.uint32), bitcast=True), mask=valid, other=0)
        scale = header.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        minimum = (header >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        # [TILE_TOKENS, columns]
        read = (codes.to(tl.float32) * scale[:, None] + minimum[:, None]).to(numbers.dtype)
    return tl.where(inside[None, :], read, numbers)


@triton.jit
def load_plane(part_ptrs, number, mask, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """``WIDTH`` bits of each of a tier's numbers ``number``, int32 ``[TILE_TOKENS, columns]``; the plane begins at byte
    ``START``.
    """
    BYTES: tl.constexpr = (SIZE * WIDTH + 7) // 8
    pointers = (part_ptrs + START)[:, None] + (number % BYTES)[None, :]
    if START % 4 == 0:
        pointers = tl.multiple_of(pointers, (1, 4))  # parts are aligned; runs of neighbours are found by the compiler
    packed = tl.load(pointers, mask=mask, other=0).to(tl.int32)
    shift = (number // BYTES * WIDTH) & 7
    return (packed >> shift[None, :]) & ((1 << WIDTH) - 1)
