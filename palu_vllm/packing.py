"""Quantizing and packing of latents: the specification, and what the torch paths run.

Asymmetric per token, group and tier, the minimum as zero point; bytes as in ``palu_vllm.latent_format``. All of it is
elementwise float32 with roundings stated below, so that every implementation can give the same codes bit for bit.
"""

from collections.abc import Iterator

import torch

from palu_vllm.latent_format import HEADER_BYTES, PLANES, LatentFormat, Tier, plane_bytes


def quantize(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x [..., size]`` to codes uint8 ``[..., size]``, scale and minimum float16 ``[..., 1]``.

    ``minimum = half(min x)``, ``scale = half((max x - minimum) / (2^bits - 1))``, and
    ``code = floor((x - minimum) / scale + 1/2)`` within range; 0 where the scale is 0. A row with a number that is not
    finite, or whose minimum or scale is beyond float16, gets a minimum of NaN, so that all of it reads as NaN.
    """
    levels = 2**bits - 1
    x = x.float()
    low, high = x.aminmax(dim=-1, keepdim=True)
    minimum = low.half()
    scale = ((high - minimum.float()) / levels).half()
    codes = ((x - minimum.float()) / scale.float() + 0.5).floor().nan_to_num(0)
    fits = minimum.isfinite() & scale.isfinite()
    codes = codes.clamp(0, levels).masked_fill(~fits | (scale <= 0), 0).to(torch.uint8)
    return codes, scale.masked_fill(~fits, 0), minimum.masked_fill(~fits, torch.nan)


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


def pieces(form: LatentFormat) -> Iterator[tuple[Tier, slice, slice, slice]]:
    """Of every tier: its numbers of the latent, the bytes of its scale and minimum, and those of its payload."""
    number, header, payload = 0, 0, form.header_bytes
    for tier in form.tiers:
        header_end = header + HEADER_BYTES * tier.is_quantized
        payload_end = payload + form.payload_bytes(tier)
        yield tier, slice(number, number + tier.size), slice(header, header_end), slice(payload, payload_end)
        number, header, payload = number + tier.size, header_end, payload_end


def pack(latent: torch.Tensor, form: LatentFormat) -> torch.Tensor:
    """``latent [..., rank]`` of any floating dtype to uint8 ``[..., form.bytes]``.

    Numbers of tiers that are not quantized are stored in ``form.dtype``.
    """
    packed = torch.zeros((*latent.shape[:-1], form.bytes), dtype=torch.uint8, device=latent.device)
    for tier, numbers, header, payload in pieces(form):
        if tier.is_quantized:
            codes, scale, minimum = quantize(latent[..., numbers], tier.bits)
            packed[..., header] = torch.cat((scale, minimum), dim=-1).view(torch.uint8)
            packed[..., payload] = pack_codes(codes, tier.bits)
        else:
            packed[..., payload] = latent[..., numbers].to(getattr(torch, form.dtype)).contiguous().view(torch.uint8)
    return packed


def unpack(packed: torch.Tensor, form: LatentFormat, out: torch.Tensor | None = None) -> torch.Tensor:
    """``packed`` uint8 ``[..., form.bytes]`` to float32 ``[..., rank]``, in ``out`` where given."""
    if out is None:
        out = torch.empty((*packed.shape[:-1], form.rank), device=packed.device)
    for tier, numbers, header, payload in pieces(form):
        part = out[..., numbers]
        if tier.is_quantized:
            part.copy_(unpack_codes(packed[..., payload], tier.size, tier.bits))
            scale, minimum = packed[..., header].contiguous().view(torch.float16).float().split(1, dim=-1)
            part.mul_(scale).add_(minimum)  # two roundings; addcmul would broadcast several times slower
        else:
            part.copy_(packed[..., payload].contiguous().view(getattr(torch, form.dtype)))
    return out
