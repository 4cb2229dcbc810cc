"""Quantizing and packing latents in a kernel, bit for bit as ``packing`` says.

Division is rounded correctly, and no product stands before a sum, so that nothing can be contracted. A format is
described in ``load_packed``.
"""

import triton
import triton.language as tl


@triton.jit
def store_part(part_ptr, latent_ptr, FORMAT: tl.constexpr):
    """Writes the latent at ``latent_ptr`` as a whole part, padding included."""
    for index in tl.static_range(1, len(FORMAT)):
        store_tier(
            part_ptr,
            latent_ptr + FORMAT[index][0],
            FORMAT[index][1],
            FORMAT[index][2],
            FORMAT[index][3],
            FORMAT[index][4],
            FORMAT[0][2],
        )
    # [4]
    padding = FORMAT[0][0] + tl.arange(0, 4)
    tl.store(part_ptr + padding, tl.zeros([4], tl.uint8), mask=padding < FORMAT[0][1])


@triton.jit
def store_tier(
    part_ptr,
    latent_ptr,  # its first number
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
    HEADER: tl.constexpr,
    PAYLOAD: tl.constexpr,
    NUMBER_TYPE: tl.constexpr,
):
    # [SIZE, padded]
    number = tl.arange(0, triton.next_power_of_2(SIZE))
    x = tl.load(latent_ptr + number, mask=number < SIZE, other=0.0)
    if BITS == 16:
        stored_ptr = (part_ptr + PAYLOAD).to(tl.pointer_type(NUMBER_TYPE), bitcast=True)
        tl.store(stored_ptr + number, x.to(NUMBER_TYPE), mask=number < SIZE)
    else:
        LEVELS: tl.constexpr = 2**BITS - 1
        scale, minimum, fits = scale_and_minimum(x.to(tl.float32), number < SIZE, LEVELS)
        header_ptr = (part_ptr + HEADER).to(tl.pointer_type(tl.float16), bitcast=True)
        tl.store(header_ptr, tl.where(fits, scale, 0.0))
        NAN: tl.constexpr = 0x7E00  # of all the bits of a float16 that say so
        minimum_bits = tl.where(fits, minimum.to(tl.int16, bitcast=True), NAN).to(tl.int16)
        tl.store(header_ptr.to(tl.pointer_type(tl.int16), bitcast=True) + 1, minimum_bits)
        step = tl.where(fits & (scale > 0), scale, 0.0).to(tl.float32)
        start = minimum.to(tl.float32)
        if BITS == 3:
            store_plane(part_ptr + PAYLOAD, latent_ptr, step, start, SIZE, LEVELS, 2, 0)
            store_plane(part_ptr + PAYLOAD + (SIZE * 2 + 7) // 8, latent_ptr, step, start, SIZE, LEVELS, 1, 2)
        else:
            store_plane(part_ptr + PAYLOAD, latent_ptr, step, start, SIZE, LEVELS, BITS, 0)


@triton.jit
def scale_and_minimum(x, mask, LEVELS: tl.constexpr):
    """Float16, and whether both are finite and every number of ``x`` is."""
    finite = tl.sum((mask & ~(tl.abs(x) < float("inf"))).to(tl.int32), axis=0) == 0
    low = tl.min(tl.where(mask, x, float("inf")), axis=0)
    high = tl.max(tl.where(mask, x, float("-inf")), axis=0)
    minimum = tl.where(finite, low, 0.0).to(tl.float16)
    span = tl.where(finite, high, 0.0) - minimum.to(tl.float32)
    scale = tl.div_rn(span, 1.0 * LEVELS).to(tl.float16)
    largest = tl.maximum(tl.abs(minimum.to(tl.float32)), tl.abs(scale.to(tl.float32)))
    return scale, minimum, finite & (largest < float("inf"))


@triton.jit
def store_plane(
    plane_ptr,
    latent_ptr,  # the tier's first number
    scale,  # 0 where all codes are
    minimum,
    SIZE: tl.constexpr,
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Writes ``WIDTH`` bits, from bit ``SHIFT`` on, of each code of a tier."""
    BYTES: tl.constexpr = (SIZE * WIDTH + 7) // 8
    # [BYTES, padded]
    byte = tl.arange(0, triton.next_power_of_2(BYTES))
    packed = tl.zeros([triton.next_power_of_2(BYTES)], tl.int32)
    for position in tl.static_range(8 // WIDTH):
        number = position * BYTES + byte
        mask = (byte < BYTES) & (number < SIZE)
        x = tl.load(latent_ptr + number, mask=mask, other=0.0).to(tl.float32)
        steps = tl.floor(tl.div_rn(x - minimum, tl.where(scale > 0, scale, 1.0)) + 0.5)
        code = tl.minimum(tl.maximum(steps, 0.0), 1.0 * LEVELS)
        code = tl.where(scale > 0, tl.where(mask, code, 0.0), 0.0).to(tl.int32)
        packed |= ((code >> SHIFT) & ((1 << WIDTH) - 1)) << (position * WIDTH)
    tl.store(plane_ptr + byte, packed.to(tl.uint8), mask=byte < BYTES)
