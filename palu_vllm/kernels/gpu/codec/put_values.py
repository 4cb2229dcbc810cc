"""Values of all heads, as the product by KV heads leaves them, into the rows of the queries that they belong to."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_requests", "tokens_in_batch"])
def put_values_kernel(
    values_ptr,  # [kv_heads, tokens, QUERIES_PER_KV, VALUE_DIM] float32
    query_start_loc_ptr,  # [requests + 1] int32
    out_ptr,  # [tokens, num_heads, VALUE_DIM]
    num_requests, tokens_in_batch, stride_out_token, stride_out_head,
    QUERIES_PER_KV: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """One program: one token and KV head. Rows past the last query are left alone."""
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if token >= tl.load(query_start_loc_ptr + num_requests):
        return
    number = tl.arange(0, triton.next_power_of_2(QUERIES_PER_KV * VALUE_DIM))
    there = number < QUERIES_PER_KV * VALUE_DIM
    row_ptr = values_ptr + (kv_head * tokens_in_batch + token) * (QUERIES_PER_KV * VALUE_DIM)
    head = kv_head * QUERIES_PER_KV + number // VALUE_DIM
    place_ptr = out_ptr + token * stride_out_token + head * stride_out_head + number % VALUE_DIM
    tl.store(place_ptr, tl.load(row_ptr + number, mask=there).to(out_ptr.dtype.element_ty), mask=there)
