"""Quantizing and packing of latents: the specification, and what the torch paths run.

Per token, group and tier, asymmetric with the minimum as zero point, or symmetric; bytes as in
``palu_vllm.format.latent_format``. All of it is elementwise float32 with roundings stated below and no product directly
before a sum, so that every implementation can give the same codes bit for bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from palu_vllm.format.latent_format import PLANES, LatentFormat, Tier, plane_bytes


def quantize(x: torch.Tensor, bits: int, clip: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x [..., size]`` to codes uint8 ``[..., size]``, scale and minimum float16 ``[..., 1]``.

    ``minimum = half(min x)``, ``scale = half((max x - minimum) / (2^bits - 1))``, and
    ``code = floor((x - minimum) / scale + 1/2)`` within range; 0 where the scale is 0. With ``clip`` below 1 both ends
    of the range move inwards by ``half((max x - min x) * (1 - clip) / 2)``. A row with a number that is not finite, or
    whose minimum or scale is beyond float16, gets a minimum of NaN, so that all of it reads as NaN.
    """
    levels = 2**bits - 1
    x = x.float()
    low, high = x.aminmax(dim=-1, keepdim=True)
    if clip < 1:
        margin = ((high - low) * ((1 - clip) / 2)).half().float()
        low, high = low + margin, high - margin
    minimum = low.half()
    scale = ((high - minimum.float()) / levels).half()
    fits = minimum.isfinite() & scale.isfinite()
    codes = _steps(x - minimum.float(), scale).clamp(0, levels).masked_fill(~fits, 0).to(torch.uint8)
    return codes, scale.masked_fill(~fits, 0), minimum.masked_fill(~fits, torch.nan)


def quantize_symmetric(x: torch.Tensor, bits: int, clip: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """``x [..., size]`` to codes uint8 ``[..., size]`` and scale float16 ``[..., 1]``.

    ``scale = half(clip max|x| / (2^(bits-1) - 1))`` and ``code = floor(x / scale + 1/2) + 2^(bits-1)`` within range;
    the code of zero where the scale is 0. A row with a number that is not finite, or whose scale is beyond float16,
    gets a scale of NaN and codes of zero, so that all of it reads as NaN.
    """
    zero = 2 ** (bits - 1)
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) * clip / (zero - 1)).half()
    scale = scale.masked_fill(~scale.isfinite(), torch.nan)
    return (_steps(x, scale) + zero).clamp(0, 2 * zero - 1).to(torch.uint8), scale


def _steps(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``floor(x / scale + 1/2)``; 0 where the scale is not positive."""
    return (x / scale.float() + 0.5).floor().masked_fill(~(scale > 0), 0)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 ``[..., size]`` to planes, uint8 ``[..., bytes]``."""
    planes, shift = [], 0
    for width in PLANES[bits]:
        count = plane_bytes(codes.shape[-1], width)
        plane = codes.new_zeros((*codes.shape[:-1], count))
        for position, part in enumerate(codes.split(count, dim=-1)):
            plane[..., : part.shape[-1]] |= ((part >> shift) & (2**width - 1)) << (position * width)
        planes.append(plane)
        shift += width
    return torch.cat(planes, dim=-1)


def unpack_codes(packed: torch.Tensor, size: int, bits: int) -> torch.Tensor:
    """The codes, uint8 ``[..., size]``, of planes ``packed`` uint8 ``[..., bytes]``."""
    codes, start, shift = None, 0, 0
    for width in PLANES[bits]:
        count = plane_bytes(size, width)
        plane = packed[..., start : start + count]
        low = torch.empty((*packed.shape[:-1], size), dtype=torch.uint8, device=packed.device)
        for position, part in enumerate(low.split(count, dim=-1)):
            torch.bitwise_right_shift(plane[..., : part.shape[-1]], position * width, out=part)
        low.bitwise_and_(2**width - 1)
        codes = low if codes is None else codes.bitwise_or_(low.bitwise_left_shift_(shift))
        start, shift = start + count, shift + width
    return codes


def clip_argument(form: LatentFormat) -> float:
    """What the store kernel is given: the factor of ``max|x|``, or that of the range at each of its ends."""
    return form.clip if form.symmetric else (1 - form.clip) / 2


class Piece(NamedTuple):
    """``tiers`` equal tiers side by side, each like ``tier``: their numbers of the latent, the bytes of their scales
    and minima, and those of their payloads.
    """

    tier: Tier
    tiers: int
    numbers: slice
    header: slice
    payload: slice


def pieces(form: LatentFormat) -> Iterator[Piece]:
    number, header, payload = 0, 0, form.header_bytes
    for tier, count in form.runs:
        number_end = number + count * tier.size
        header_end = header + count * form.tier_header_bytes(tier)
        payload_end = payload + count * form.payload_bytes(tier)
        yield Piece(tier, count, slice(number, number_end), slice(header, header_end), slice(payload, payload_end))
        number, header, payload = number_end, header_end, payload_end


def pack(latent: torch.Tensor, form: LatentFormat) -> torch.Tensor:
    """``latent [..., rank]`` of any floating dtype to uint8 ``[..., form.bytes]``.

    Numbers of tiers that are not quantized are stored in ``form.dtype``.
    """
    packed = torch.zeros((*latent.shape[:-1], form.bytes), dtype=torch.uint8, device=latent.device)
    for tier, count, numbers, header, payload in pieces(form):
        if tier.is_quantized:
            x = latent[..., numbers].unflatten(-1, (count, tier.size))
            codes, scales = _quantized(x, tier.bits, form)
            packed[..., header] = scales.flatten(-2).view(torch.uint8)
            packed[..., payload] = pack_codes(codes, tier.bits).flatten(-2)
        else:
            packed[..., payload] = latent[..., numbers].to(getattr(torch, form.dtype)).contiguous().view(torch.uint8)
    return packed


def rounded(latent: torch.Tensor, form: LatentFormat) -> torch.Tensor:
    """What ``unpack(pack(latent, form), form)`` gives, float32 ``[..., rank]``, without the bytes between."""
    out = torch.empty(latent.shape, dtype=torch.float32, device=latent.device)
    for tier, count, numbers, _, _ in pieces(form):
        if tier.is_quantized:
            x = latent[..., numbers].unflatten(-1, (count, tier.size))
            codes, scales = _quantized(x, tier.bits, form)
            part = codes.float()
            _dequantize(part, scales.float(), tier.bits)
            out[..., numbers] = part.flatten(-2)
        else:
            out[..., numbers] = latent[..., numbers].to(getattr(torch, form.dtype)).float()
    return out


def _quantized(x: torch.Tensor, bits: int, form: LatentFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 of ``x [..., size]`` and their float16 scales as they are stored, ``[..., 1 or 2]``."""
    codes, *scales = (quantize_symmetric if form.symmetric else quantize)(x, bits, form.clip)
    return codes, torch.cat(scales, dim=-1)


def unpack(packed: torch.Tensor, form: LatentFormat, out: torch.Tensor | None = None) -> torch.Tensor:
    """``packed`` uint8 ``[..., form.bytes]`` to float32 ``[..., rank]``, in ``out`` where given."""
    if out is None:
        out = torch.empty((*packed.shape[:-1], form.rank), device=packed.device)
    for tier, count, numbers, header, payload in pieces(form):
        part = out[..., numbers]
        if tier.is_quantized:
            part = part.unflatten(-1, (count, tier.size))
            part.copy_(unpack_codes(packed[..., payload].unflatten(-1, (count, -1)), tier.size, tier.bits))
            scales = packed[..., header].contiguous().view(torch.float16).float().unflatten(-1, (count, -1))
            _dequantize(part, scales, tier.bits)
        else:
            part.copy_(packed[..., payload].contiguous().view(getattr(torch, form.dtype)))
    return out


def _dequantize(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> None:
    """Makes numbers of float32 ``codes [..., size]`` in place; ``scales [..., 2]`` has scale and minimum, or
    ``[..., 1]`` the scale of symmetric codes.
    """
    if scales.shape[-1] == 1:
        codes.sub_(2 ** (bits - 1)).mul_(scales)
    else:
        scale, minimum = scales.split(1, dim=-1)
        codes.mul_(scale).add_(minimum)  # two roundings; addcmul would broadcast several times slower
