"""Levels of codes: whole numbers from -127 to 127, so that int8, int16, bfloat16 and float32 hold them exactly.

The levels of 2 to 5 bits are those of Lloyd and Max for a unit Gaussian, rounded to whole multiples of a unit; those of
8 bits are equal steps. A codec's matrices are made for numbers in these units.
"""

from functools import cache

import torch

LARGEST = 127
# upper half of the Lloyd-Max levels of a unit Gaussian (Max, Quantizing for minimum distortion, 1960, table I)
GAUSSIAN = {
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1520),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
    5: (0.0659, 0.1980, 0.3312, 0.4665, 0.6047, 0.7469, 0.8942, 1.0484,
        1.2114, 1.3859, 1.5757, 1.7866, 2.0280, 2.3169, 2.6902, 3.2597),
}  # fmt: skip
# 127 units in standard deviations of the numbers: the largest level, but where other roundings are nearer (5 bits)
RANGE = {bits: upper[-1] for bits, upper in GAUSSIAN.items()} | {5: 3.504, 8: 3.94}
UNQUANTIZED = 16


def unit(bits: int) -> float:
    """What one step of a level is worth, in standard deviations of the numbers; 1 where they are not quantized."""
    return 1.0 if bits == UNQUANTIZED else RANGE[bits] / LARGEST


@cache
def levels(bits: int) -> torch.Tensor:
    """The level of every code, float32 ``[2^bits]``, ascending; code 0 of 8 bits is never written."""
    if bits == 8:
        return torch.arange(-LARGEST - 1, LARGEST + 1, dtype=torch.float32)
    upper = torch.tensor(GAUSSIAN[bits], dtype=torch.float64) / unit(bits)
    upper = upper.round().float()
    return torch.cat((-upper.flip(0), upper))


@cache
def thresholds(bits: int) -> torch.Tensor:
    """Halfway between neighbouring levels, float32 ``[2^bits - 1]``: a number's code is how many lie below it."""
    table = levels(bits)
    return (table[1:] + table[:-1]) / 2


@cache
def distortion(bits: int) -> float:
    """The mean squared error of a unit Gaussian's codes, by numerical integration; 0 where it is not quantized."""
    if bits == UNQUANTIZED:
        return 0.0
    quantiles = (torch.arange(1 << 18, dtype=torch.float64) + 0.5) / (1 << 18)
    numbers = torch.special.ndtri(quantiles)
    found = nearest((numbers / unit(bits)).float(), bits)
    return (numbers - levels(bits).double()[found.long()] * unit(bits)).square().mean().item()


def nearest(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The code of the nearest level of every number, uint8; a tie takes the lower code."""
    codes = torch.bucketize(x, thresholds(bits).to(x.device))
    return (codes.clamp_(min=1) if bits == 8 else codes).to(torch.uint8)
