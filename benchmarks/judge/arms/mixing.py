"""Hadamard matrices as the rivals use them, and rounding as their kernels do it."""

import math
from functools import cache

import torch


@cache
def hadamard(size: int) -> torch.Tensor:
    """Orthonormal and symmetric ``[size, size]`` (Sylvester); ``size`` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def half_away(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the nearest integer, halves away from zero: what the kernels do before they cut to int."""
    return (x + torch.where(x >= 0, 0.5, -0.5)).trunc()


def float16(x: torch.Tensor) -> torch.Tensor:
    """As stored in 16 bits."""
    return x.half().float()
