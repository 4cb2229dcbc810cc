"""Coding new tokens and packing their codes in a kernel, bit for bit as ``format.codec.coding`` says.

The products with the encoder are float64 and done before; here are differences from centres, scales, codes and planes.
Quotients are rounded correctly. Numbers of a tier are computed again wherever they are needed, which is cheaper than
moving them between threads.
"""

import triton
import triton.language as tl

from palu_vllm.format.codec.levels import UNQUANTIZED

BITS_OF_NAN = tl.constexpr(0x7E00)
THRESHOLDS = tl.constexpr(64)  # numbers before them in the table of levels
UNPACKED = tl.constexpr(UNQUANTIZED)


@triton.jit
def around(y_ptr, centre_ptr, number, mask):
    """Numbers of one token around a centre, float32."""
    y = tl.load(y_ptr + number, mask=mask, other=0.0)
    return (y - tl.load(centre_ptr + number, mask=mask, other=0.0)).to(tl.float32)


@triton.jit
def over(y, size):
    """``y / size``, 0 where that is no number."""
    ratio = tl.div_rn(y, size + tl.zeros_like(y))
    return tl.where(tl.abs(ratio) < float("inf"), ratio, 0.0)


@triton.jit
def nearest(x, levels_ptr, BITS: tl.constexpr):
    """The code of the nearest level, int32; the lower one of two."""
    if BITS == 8:
        wide = tl.minimum(tl.maximum(x, -127.0), 127.0).to(tl.float64)
        below = tl.floor(wide)
        code = below.to(tl.int32) + (wide - below > 0.5).to(tl.int32) + 128
    else:
        code = tl.zeros(x.shape, tl.int32)
        for step in tl.static_range(BITS):
            above = code + (1 << (BITS - 1 - step))
            threshold = tl.load(levels_ptr + (THRESHOLDS + (1 << BITS)) + above)
            code = tl.where(x > threshold, above, code)
    return code


@triton.jit
def level_of(code, levels_ptr, BITS: tl.constexpr):
    level = code.to(tl.float32) - 128
    if BITS != 8:
        level = tl.load(levels_ptr + (1 << BITS) + code)
    return level


@triton.jit
def nearer_centre(y_ptr, usual_ptr, sink_ptr, RANK: tl.constexpr):
    """Whether the sinks' centre is nearer than the usual one."""
    number = tl.arange(0, triton.next_power_of_2(RANK))
    usual = around(y_ptr, usual_ptr, number, number < RANK)
    first = around(y_ptr, sink_ptr, number, number < RANK)
    return tl.sum(first * first, axis=0) < tl.sum(usual * usual, axis=0)


@triton.jit
def size_of(y_ptr, centre_ptr, units_ptr, RANK: tl.constexpr):
    """The root mean square in standard deviations, float32."""
    number = tl.arange(0, triton.next_power_of_2(RANK))
    y = around(y_ptr, centre_ptr, number, number < RANK)
    wide = (y * tl.load(units_ptr + number, mask=number < RANK, other=0.0)).to(tl.float64)
    return tl.sqrt(tl.sum(wide * wide, axis=0) / RANK).to(tl.float32)


@triton.jit
def fitted_scale(y_ptr, centre_ptr, size, weights_ptr, levels_ptr, TILES: tl.constexpr):
    """The scale of least squared error for the levels nearest to the numbers over ``size``, float16."""
    dot = size.to(tl.float64) * 0.0
    square = dot
    first = 0
    for index in tl.static_range(len(TILES)):
        number = tl.arange(0, triton.next_power_of_2(TILES[index][1]))
        mask = number < TILES[index][1]
        y = around(y_ptr + first, centre_ptr + first, number, mask)
        level = level_of(nearest(over(y, size), levels_ptr, TILES[index][0]), levels_ptr, TILES[index][0])
        weight = tl.load(weights_ptr + index)
        dot += weight * tl.sum(tl.where(mask, y * level, 0.0).to(tl.float64), axis=0)
        square += weight * tl.sum(tl.where(mask, level * level, 0.0).to(tl.float64), axis=0)
        first += TILES[index][1]
    return tl.where(size == 0.0, 0.0, (dot / square).to(tl.float32)).to(tl.float16)


@triton.jit
def store_plane(
    plane_ptr, y_ptr, centre_ptr, scale, broken, levels_ptr, SIZE: tl.constexpr, BITS: tl.constexpr,
    SHIFT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The ``WIDTH`` bits from ``SHIFT`` on of the codes of one tier."""
    BYTES: tl.constexpr = (SIZE * WIDTH + 7) // 8
    # [BYTES], padded
    byte = tl.arange(0, triton.next_power_of_2(BYTES))
    packed = tl.zeros(byte.shape, tl.int32)
    for part in range(8 // WIDTH):
        number = part * BYTES + byte
        inside = (byte < BYTES) & (number < SIZE)
        y = around(y_ptr, centre_ptr, number, inside)
        code = nearest(over(y, scale), levels_ptr, BITS)
        packed |= tl.where(inside, ((code >> SHIFT) & ((1 << WIDTH) - 1)) << (part * WIDTH), 0)
    tl.store(plane_ptr + byte, tl.where(broken, 0, packed).to(tl.uint8), mask=byte < BYTES)


@triton.jit
def store_tier(plane_ptr, y_ptr, centre_ptr, scale, broken, levels_ptr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """The planes of one tier."""
    WIDTH: tl.constexpr = 8 if BITS == 8 else 4 if BITS > 3 else 2
    store_plane(plane_ptr, y_ptr, centre_ptr, scale, broken, levels_ptr, SIZE, BITS, 0, WIDTH)
    if BITS == 3 or BITS == 5:
        high_ptr = plane_ptr + (SIZE * WIDTH + 7) // 8
        store_plane(high_ptr, y_ptr, centre_ptr, scale, broken, levels_ptr, SIZE, BITS, WIDTH, 1)


@triton.jit
def store_numbers(payload_ptr, y_ptr, centre_ptr, SIZE: tl.constexpr):
    """Numbers that are not quantized, float16."""
    number = tl.arange(0, triton.next_power_of_2(SIZE))
    y = around(y_ptr, centre_ptr, number, number < SIZE)
    stored_ptr = payload_ptr.to(tl.pointer_type(tl.float16), bitcast=True)
    tl.store(stored_ptr + number, y.to(tl.float16), mask=number < SIZE)


@triton.jit
def store_side(
    slot_ptr, scale_ptr, y_ptr, usual_ptr, sink_ptr, units_ptr, weights_ptr, levels_ptr, TILES: tl.constexpr,
    RANK: tl.constexpr, USED: tl.constexpr, STOP: tl.constexpr,
):  # fmt: skip
    """Codes of K or of V of one token and group; the bytes ``USED`` to ``STOP`` of the slot are zeroed."""
    is_first = nearer_centre(y_ptr, usual_ptr, sink_ptr, RANK)
    sign = tl.where(is_first, 0x8000, 0)
    centre_ptr = tl.where(is_first, sink_ptr, usual_ptr)
    if TILES[0][0] == UNPACKED:
        store_numbers(slot_ptr + TILES[0][2], y_ptr, centre_ptr, RANK)
        tl.store(scale_ptr, (0x3C00 | sign).to(tl.uint16))
    else:
        size = size_of(y_ptr, centre_ptr, units_ptr, RANK)
        scale = fitted_scale(y_ptr, centre_ptr, size, weights_ptr, levels_ptr, TILES)
        wide = scale.to(tl.float32)
        broken = ~((tl.abs(wide) < float("inf")) & (tl.abs(size) < float("inf")))
        bits = tl.where(broken, BITS_OF_NAN, scale.to(tl.uint16, bitcast=True).to(tl.int32))
        tl.store(scale_ptr, (bits ^ sign).to(tl.uint16))
        first = 0
        for index in tl.static_range(len(TILES)):
            plane_ptr = slot_ptr + TILES[index][2]
            store_tier(
                plane_ptr, y_ptr + first, centre_ptr + first, wide, broken, levels_ptr, TILES[index][1], TILES[index][0]
            )
            first += TILES[index][1]
    padding = USED + tl.arange(0, 4)
    tl.store(slot_ptr + padding, tl.zeros([4], tl.uint8), mask=padding < STOP)


@triton.jit(do_not_specialize=["tokens"])  # compiled for no number of them
def store_codes_kernel(
    y_k_ptr,  # [groups, 2, tokens, RANK_K] float64: of keys, of their usual centres
    usual_k_ptr,  # the first of these centres
    sink_k_ptr,  # [groups, RANK_K] float64
    y_v_ptr,  # [groups, tokens, RANK_V] float64
    usual_v_ptr,  # [groups, RANK_V] float64
    sink_v_ptr,  # [groups, RANK_V] float64
    units_k_ptr, units_v_ptr,  # [RANK_K], [RANK_V] float32: what the levels of every number count in
    weights_k_ptr, weights_v_ptr,  # [tiers] float64: squares of these
    levels_ptr,  # [128] float32
    cache_ptr,  # [num_blocks, groups, block_size, bytes] uint8
    slot_mapping_ptr,  # [tokens] int64
    tokens, block_size, stride_cache_block, stride_cache_group, stride_cache_slot,
    TILES_K: tl.constexpr, TILES_V: tl.constexpr, RANK_K: tl.constexpr, RANK_V: tl.constexpr,
    USED_K: tl.constexpr, STOP_K: tl.constexpr, USED_V: tl.constexpr, STOP_V: tl.constexpr,
):  # fmt: skip
    """One program: one token and group."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    if slot < 0:
        return
    place = slot // block_size * stride_cache_block + group * stride_cache_group
    slot_ptr = cache_ptr + (place + slot % block_size * stride_cache_slot)
    scale_ptr = slot_ptr.to(tl.pointer_type(tl.uint16), bitcast=True)
    row = group * tokens + token
    key_row = row + group * tokens
    store_side(
        slot_ptr, scale_ptr, y_k_ptr + key_row * RANK_K, usual_k_ptr + key_row * RANK_K, sink_k_ptr + group * RANK_K,
        units_k_ptr, weights_k_ptr, levels_ptr, TILES_K, RANK_K, USED_K, STOP_K,
    )  # fmt: skip
    store_side(
        slot_ptr, scale_ptr + 1, y_v_ptr + row * RANK_V, usual_v_ptr + group * RANK_V, sink_v_ptr + group * RANK_V,
        units_v_ptr, weights_v_ptr, levels_ptr, TILES_V, RANK_V, USED_V, STOP_V,
    )  # fmt: skip
