"""Codes of vectors with one scale each: the specification, and what the torch path runs.

Everything is elementwise float32 but for two sums in float64 whose rounding to float32 and float16 does not depend on
their order in practice, so that every implementation gives the same codes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from palu_vllm.format.codec.levels import levels, nearest, unit
from palu_vllm.format.latent_format import CodedFormat, Tier
from palu_vllm.format.packing import pack_codes, unpack_codes


class Piece(NamedTuple):
    """One tier: its numbers and its bytes."""

    tier: Tier
    numbers: slice
    payload: slice


def pieces(form: CodedFormat) -> Iterator[Piece]:
    number, byte = 0, 0
    for tier in form.tiers:
        ends = number + tier.size, byte + form.payload_bytes(tier)
        yield Piece(tier, slice(number, ends[0]), slice(byte, ends[1]))
        number, byte = ends


def units(form: CodedFormat) -> torch.Tensor:
    """What the levels of every number count in, in standard deviations, float32 ``[rank]``."""
    return torch.cat([torch.full((tier.size,), unit(tier.bits)) for tier in form.tiers])


def size_of(y: torch.Tensor, form: CodedFormat) -> torch.Tensor:
    """The root mean square of ``y [..., rank]`` in standard deviations of its numbers, float32 ``[..., 1]``."""
    return (y * units(form).to(y.device)).double().square().mean(-1, keepdim=True).sqrt().float()


def encode(y: torch.Tensor, form: CodedFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """``y [..., rank]`` float32 to payload uint8 ``[..., form.bytes]`` and scale float16 ``[..., 1]``.

    A first scale is ``size_of(y)``; a number's code is that of the level nearest to the number over it. The stored
    scale is the one with the least squared error, in standard deviations, for these codes: 0 for zeros, and NaN, with
    codes of zero, where a number or the scale is not finite. Numbers of 16 bits are stored as they are, with 1.
    """
    if not form.is_quantized:
        payload = y.half().contiguous().view(torch.uint8)
        return payload, torch.ones_like(y[..., :1], dtype=torch.float16)
    size = size_of(y, form)
    payload = y.new_zeros((*y.shape[:-1], form.bytes), dtype=torch.uint8)
    dot = square = torch.zeros_like(size, dtype=torch.float64)
    for tier, numbers, place in pieces(form):
        codes = nearest((y[..., numbers] / size).nan_to_num(0.0, 0.0, 0.0), tier.bits)
        level = levels(tier.bits).to(y.device)[codes.long()]
        weight = unit(tier.bits) ** 2
        dot = dot + weight * (y[..., numbers] * level).double().sum(-1, keepdim=True)
        square = square + weight * level.square().double().sum(-1, keepdim=True)
        payload[..., place] = pack_codes(codes, tier.bits)
    scale = (dot / square).half().masked_fill(size == 0, 0.0)
    broken = ~(scale.isfinite() & size.isfinite())
    return payload.masked_fill(broken, 0), scale.masked_fill(broken, torch.nan)


def decode(payload: torch.Tensor, form: CodedFormat) -> torch.Tensor:
    """Levels, or numbers that are not quantized, float32 ``[..., rank]``, to be multiplied by the scale's size."""
    out = torch.empty((*payload.shape[:-1], form.rank), device=payload.device)
    for tier, numbers, place in pieces(form):
        if tier.is_quantized:
            codes = unpack_codes(payload[..., place], tier.size, tier.bits)
            out[..., numbers] = levels(tier.bits).to(payload.device)[codes.long()]
        else:
            out[..., numbers] = payload[..., place].contiguous().view(torch.float16).float()
    return out
