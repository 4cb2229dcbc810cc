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

    With ``size_of(y)`` as a first scale, the levels nearest to the numbers over it have a scale of least squared error,
    in standard deviations; that one is stored, and codes are those of the levels nearest to the numbers over it. It is
    0 for zeros, and NaN, with codes of zero, where a number or the scale is not finite. Numbers of 16 bits are stored
    as they are, with 1.
    """
    if not form.is_quantized:
        payload = y.half().contiguous().view(torch.uint8)
        return payload, torch.ones_like(y[..., :1], dtype=torch.float16)
    size = size_of(y, form)
    scale = fitted_scale(y, size, form)
    broken = ~(scale.isfinite() & size.isfinite())
    payload = y.new_zeros((*y.shape[:-1], form.bytes), dtype=torch.uint8)
    for tier, numbers, place in pieces(form):
        codes = nearest(over(y[..., numbers], scale.float()), tier.bits)
        payload[..., place] = pack_codes(codes, tier.bits)
    return payload.masked_fill(broken, 0), scale.masked_fill(broken, torch.nan)


def fitted_scale(y: torch.Tensor, size: torch.Tensor, form: CodedFormat) -> torch.Tensor:
    """The scale of least squared error for the levels nearest to ``y / size``, float16 ``[..., 1]``; 0 for zeros."""
    dot = square = torch.zeros_like(size, dtype=torch.float64)
    for tier, numbers, _ in pieces(form):
        part, weight = y[..., numbers], unit(tier.bits) ** 2
        level = levels(tier.bits).to(y.device)[nearest(over(part, size), tier.bits).long()]
        dot = dot + weight * (part * level).double().sum(-1, keepdim=True)
        square = square + weight * level.square().double().sum(-1, keepdim=True)
    return (dot / square).half().masked_fill(size == 0, 0.0)


def over(y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``y / scale``, 0 where that is no number."""
    return (y / scale).nan_to_num(0.0, 0.0, 0.0)


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
