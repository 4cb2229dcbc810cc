"""Ranges laid end to end, such as the tiles of every request: which of them holds a number."""

import triton
import triton.language as tl


@triton.jit
def range_of(number, starts_ptr, count):
    """The last of ``count`` ranges that begins at ``number`` or before, int64; ``starts_ptr [count + 1]`` ascends."""
    low = tl.zeros([], tl.int64)
    high = low + count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(starts_ptr + middle) <= number:
            low = middle
        else:
            high = middle - 1
    return low
