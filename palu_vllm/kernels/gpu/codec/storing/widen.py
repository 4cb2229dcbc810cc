"""What new tokens are multiplied with encoders as: float64 keys, the usual centres of keys, and values, by groups."""

import triton
import triton.language as tl

from palu_vllm.kernels.gpu.codec.steps import POSITIONS


@triton.jit(do_not_specialize=["tokens", "num_blocks"])
def widen_kernel(
    key_ptr,  # [tokens, kv_heads, KEY_DIM]
    value_ptr,  # [tokens, kv_heads, VALUE_DIM]
    positions_ptr,  # [tokens] int64
    blocks_ptr,  # [num_blocks, FEATURES] float32: cosines, then sines
    centre_cos_ptr, centre_sin_ptr,  # [kv_heads, KEY_DIM] float32
    frequency_of_ptr,  # [KEY_DIM] int64
    wide_key_ptr,  # [groups, 2, tokens, GROUP_SIZE * KEY_DIM] float64: keys, then centres
    wide_value_ptr,  # [groups, tokens, GROUP_SIZE * VALUE_DIM] float64
    tokens, num_blocks, stride_key_token, stride_key_head, stride_value_token, stride_value_head,
    FEATURES: tl.constexpr, FREQUENCIES: tl.constexpr, GROUP_SIZE: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """One program: one token and KV head. Positions past the table, which only padding has, get its last centre.

    Must be compiled without fused multiplication and addition, which rounds once where the specification rounds twice.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group, part = head // GROUP_SIZE, head % GROUP_SIZE
    number = tl.arange(0, triton.next_power_of_2(KEY_DIM))
    there = number < KEY_DIM
    key = tl.load(key_ptr + token * stride_key_token + head * stride_key_head + number, mask=there)
    block = tl.load(positions_ptr + token) // POSITIONS
    features_ptr = blocks_ptr + tl.minimum(tl.maximum(block, 0), num_blocks - 1) * FEATURES
    frequency = tl.load(frequency_of_ptr + number, mask=there, other=0)
    cos = tl.load(features_ptr + frequency, mask=there)
    sin = tl.load(features_ptr + FREQUENCIES + frequency, mask=there)
    of_cos = tl.load(centre_cos_ptr + head * KEY_DIM + number, mask=there)
    of_sin = tl.load(centre_sin_ptr + head * KEY_DIM + number, mask=there)
    centre = of_cos * cos + of_sin * sin
    row_ptr = wide_key_ptr + ((2 * group * tokens + token) * GROUP_SIZE + part) * KEY_DIM
    tl.store(row_ptr + number, key.to(tl.float64), mask=there)
    centre_ptr = row_ptr + tokens.to(tl.int64) * (GROUP_SIZE * KEY_DIM)
    tl.store(centre_ptr + number, centre.to(tl.float64), mask=there)
    number = tl.arange(0, triton.next_power_of_2(VALUE_DIM))
    there = number < VALUE_DIM
    value = tl.load(value_ptr + token * stride_value_token + head * stride_value_head + number, mask=there)
    row_ptr = wide_value_ptr + ((group * tokens + token) * GROUP_SIZE + part) * VALUE_DIM
    tl.store(row_ptr + number, value.to(tl.float64), mask=there)
