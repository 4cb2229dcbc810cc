"""Quantizing and packing latents in a kernel, bit for bit as ``packing`` says.

Division is rounded correctly, and no product stands directly before a sum, so that nothing can be contracted. A format
is described in ``load_packed``.
"""

import triton
import triton.language as tl


@triton.jit
def store_part(part_ptr, latent_ptr, clip, FORMAT: tl.constexpr):
    """Writes the latent at ``latent_ptr`` as a whole part, padding included; ``clip`` as ``packing.clip_argument``."""
    for index in tl.static_range(1, len(FORMAT)):
        store_tiers(
            part_ptr,
            latent_ptr + FORMAT[index][0],
            clip,
            FORMAT[index][1],
            FORMAT[index][2],
            FORMAT[index][3],
            FORMAT[index][4],
            FORMAT[index][5],
            FORMAT[0][3],
            FORMAT[0][4],
        )
    store_zeros(part_ptr, FORMAT[0][0], FORMAT[1][5])
    store_zeros(part_ptr, FORMAT[0][1], FORMAT[0][2])


@triton.jit
def store_zeros(part_ptr, START: tl.constexpr, STOP: tl.constexpr):
    """At most 4 bytes."""
    # [4]
    padding = START + tl.arange(0, 4)
    tl.store(part_ptr + padding, tl.zeros([4], tl.uint8), mask=padding < STOP)


@triton.jit
def store_tiers(
    part_ptr,
    latent_ptr,  # its first number
    clip,
    SIZE: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    HEADER: tl.constexpr,
    PAYLOAD: tl.constexpr,
    NUMBER_TYPE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Writes ``COUNT`` equal tiers."""
    tier, number = tl.arange(0, triton.next_power_of_2(COUNT)), tl.arange(0, triton.next_power_of_2(SIZE))
    # [COUNT, SIZE], padded
    place = tier[:, None] * SIZE + number[None, :]
    inside = (tier < COUNT)[:, None] & (number < SIZE)[None, :]
    x = tl.load(latent_ptr + place, mask=inside, other=0.0)
    if BITS == 16:
        stored_ptr = (part_ptr + PAYLOAD).to(tl.pointer_type(NUMBER_TYPE), bitcast=True)
        tl.store(stored_ptr + place, x.to(NUMBER_TYPE), mask=inside)
    else:
        LEVELS: tl.constexpr = 2**BITS - 1
        ZERO: tl.constexpr = LEVELS // 2 + 1 if SYMMETRIC else 0  # the code that a step of 0 has
        header_ptr = (part_ptr + HEADER).to(tl.pointer_type(tl.int16), bitcast=True)
        if SYMMETRIC:
            scale, fits = symmetric_scale(x.to(tl.float32), clip, LEVELS // 2)
            minimum = tl.zeros_like(scale)
            tl.store(header_ptr + tier, or_nan(scale, fits), mask=tier < COUNT)
        else:
            scale, minimum, fits = scale_and_minimum(x.to(tl.float32), (number < SIZE)[None, :], clip, LEVELS)
            tl.store(header_ptr + 2 * tier, tl.where(fits, scale, 0.0).to(tl.int16, bitcast=True), mask=tier < COUNT)
            tl.store(header_ptr + 2 * tier + 1, or_nan(minimum, fits), mask=tier < COUNT)
        # [COUNT]
        step = tl.where(fits & (scale > 0), scale, 0.0).to(tl.float32)
        start = minimum.to(tl.float32)
        if BITS == 3:
            LOW: tl.constexpr = (SIZE * 2 + 7) // 8
            STRIDE: tl.constexpr = LOW + (SIZE + 7) // 8
            store_plane(part_ptr + PAYLOAD, latent_ptr, step, start, SIZE, COUNT, STRIDE, LEVELS, ZERO, 2, 0)
            store_plane(part_ptr + PAYLOAD + LOW, latent_ptr, step, start, SIZE, COUNT, STRIDE, LEVELS, ZERO, 1, 2)
        else:
            STRIDE: tl.constexpr = (SIZE * BITS + 7) // 8
            store_plane(part_ptr + PAYLOAD, latent_ptr, step, start, SIZE, COUNT, STRIDE, LEVELS, ZERO, BITS, 0)


@triton.jit
def or_nan(number, fits):
    """The bits of float16 ``number``, or, of all that say NaN, those of torch."""
    return tl.where(fits, number.to(tl.int16, bitcast=True), 0x7E00).to(tl.int16)


@triton.jit
def symmetric_scale(x, clip, LARGEST: tl.constexpr):
    """Float16 ``[COUNT]``, and whether it and every number of ``x [COUNT, SIZE]`` is finite."""
    finite = tl.sum((~(tl.abs(x) < float("inf"))).to(tl.int32), axis=1) == 0
    bound = tl.where(finite, tl.max(tl.abs(x), axis=1), 0.0) * clip
    scale = tl.div_rn(bound, 1.0 * LARGEST).to(tl.float16)
    return scale, finite & (scale.to(tl.float32) < float("inf"))


@triton.jit
def scale_and_minimum(x, mask, clip, LEVELS: tl.constexpr):
    """Float16 ``[COUNT]`` each, and whether both are finite and every number of ``x [COUNT, SIZE]`` is."""
    finite = tl.sum((~(tl.abs(x) < float("inf"))).to(tl.int32), axis=1) == 0
    low = tl.where(finite, tl.min(tl.where(mask, x, float("inf")), axis=1), 0.0)
    high = tl.where(finite, tl.max(tl.where(mask, x, float("-inf")), axis=1), 0.0)
    margin = ((high - low) * clip).to(tl.float16).to(tl.float32)
    low = tl.where(clip > 0, low + margin, low)  # not even the sign of a zero changes without clipping
    high = tl.where(clip > 0, high - margin, high)
    minimum = low.to(tl.float16)
    scale = tl.div_rn(high - minimum.to(tl.float32), 1.0 * LEVELS).to(tl.float16)
    largest = tl.maximum(tl.abs(minimum.to(tl.float32)), tl.abs(scale.to(tl.float32)))
    return scale, minimum, finite & (largest < float("inf"))


@triton.jit
def store_plane(
    plane_ptr,
    latent_ptr,  # the first tier's first number
    scale,  # [COUNT], 0 where all numbers have the code ZERO
    minimum,  # [COUNT]
    SIZE: tl.constexpr,
    COUNT: tl.constexpr,
    STRIDE: tl.constexpr,  # bytes from one tier to the next
    LEVELS: tl.constexpr,
    ZERO: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Writes ``WIDTH`` bits, from bit ``SHIFT`` on, of each code of ``COUNT`` tiers."""
    BYTES: tl.constexpr = (SIZE * WIDTH + 7) // 8
    tier, byte = tl.arange(0, triton.next_power_of_2(COUNT)), tl.arange(0, triton.next_power_of_2(BYTES))
    inside = (tier < COUNT)[:, None] & (byte < BYTES)[None, :]
    # [COUNT, BYTES], padded
    packed = tl.zeros([triton.next_power_of_2(COUNT), triton.next_power_of_2(BYTES)], tl.int32)
    for position in tl.static_range(8 // WIDTH):
        number = position * BYTES + byte
        mask = inside & (number < SIZE)[None, :]
        x = tl.load(latent_ptr + tier[:, None] * SIZE + number[None, :], mask=mask, other=0.0).to(tl.float32)
        steps = tl.floor(tl.div_rn(x - minimum[:, None], tl.where(scale > 0, scale, 1.0)[:, None]) + 0.5)
        code = tl.where((scale > 0)[:, None], steps, 0.0) + 1.0 * ZERO
        code = tl.where(mask, tl.minimum(tl.maximum(code, 0.0), 1.0 * LEVELS), 0.0).to(tl.int32)
        packed |= ((code >> SHIFT) & ((1 << WIDTH) - 1)) << (position * WIDTH)
    tl.store(plane_ptr + tier[:, None] * STRIDE + byte[None, :], packed.to(tl.uint8), mask=inside)
