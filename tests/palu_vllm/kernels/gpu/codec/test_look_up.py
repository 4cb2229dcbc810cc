"""What NVIDIA's instructions give for every code, in an emulator of them; untested on a GPU."""

import pytest
import torch

from palu_vllm.format.codec.levels import levels
from palu_vllm.format.latent_format import PLANES
from palu_vllm.kernels.gpu.codec.look_up import SHIFTS, look_up
from tests.support.codecs.ptx import run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_every_code_has_its_level_in_every_place(bits, dtype):
    width = PLANES[bits][0]
    parts, code = 8 // width, look_up(bits, dtype)
    generator = torch.Generator().manual_seed(bits)
    # every part of four bytes at a time meets every code once
    orders = torch.stack([torch.randperm(1 << bits, generator=generator) for _ in range(parts)], dim=-1)
    for codes in orders.split(4):
        low = [sum(int(c & ((1 << width) - 1)) << p * width for p, c in enumerate(row)) for row in codes]
        noise = torch.randint(256, (4,), generator=generator).tolist()  # bits that no part reads are any
        shifts = torch.randint(width, (4,), generator=generator).tolist()
        high = [
            sum(int(c >> width) << p * width + by for p, c in enumerate(row))
            | others & ~(sum(1 << p * width for p in range(parts)) << by) & 255
            for row, others, by in zip(codes, noise, shifts, strict=True)
        ]
        masks = [[255 * (by >> bit & 1) for by in shifts] for bit in range(SHIFTS.get(bits, 0))]
        planes = [low, *[high] * (bits in SHIFTS), *masks]
        found = run(code, 2 * parts, [int.from_bytes(bytes(plane), "little") for plane in planes])
        halves = torch.tensor([word >> shift & 0xFFFF for word in found for shift in (0, 16)], dtype=torch.int32)
        numbers = halves.to(torch.int16).view(dtype).float().view(parts, 4)
        assert torch.equal(numbers, levels(bits)[codes.T])


@pytest.mark.parametrize(("bits", "expected"), [(2, 1.3), (3, 1.6), (4, 2.6), (5, 5.6)])
def test_instructions_per_level(bits, expected):
    """As the module says; moves are of constants and operands."""
    instructions = [each for each in look_up(bits, torch.bfloat16).split(";") if "b32" in each]
    counted = [each for each in instructions if not any(word in each for word in (".reg", "mov."))]
    assert len(counted) / (4 * 8 // PLANES[bits][0]) == pytest.approx(expected, abs=0.05)
