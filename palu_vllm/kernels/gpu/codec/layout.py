"""Where a codec's numbers lie in the tiles of the kernels: a tile of bytes gives one tile of levels per part.

Number i of a plane of B bytes is in byte ``i % B``, so part p of a tile of whole bytes has the numbers from ``p B`` on.
Parts stand side by side in *columns*, each padded to a power of two; what is multiplied with them is laid out alike.
"""

import torch

from palu_vllm.format.codec.coding import pieces
from palu_vllm.format.latent_format import PLANES, CodedFormat, Tier, plane_bytes
from palu_vllm.kernels.gpu.tiling import padded

WORD = 4  # bytes that a table of levels is looked up for at once
CodeTile = tuple[int, int, int, int, int, int]
CodeTiles = tuple[CodeTile, ...]


LEAST_COLUMNS = 32  # of one part: products wider than they have rows, whose columns Triton gives to its warps


def width(numbers: int) -> int:
    """Columns of a part."""
    return max(LEAST_COLUMNS, padded(numbers))


def low_numbers(tier: Tier) -> int:
    """Numbers of one part: bytes of the plane of the lowest bits."""
    return plane_bytes(tier.size, PLANES[tier.bits][0]) if tier.is_quantized else tier.size


def parts(tier: Tier) -> int:
    return 8 // PLANES[tier.bits][0] if tier.is_quantized else 1


def code_tiles(form: CodedFormat, start: int) -> CodeTiles:
    """One tile per tier of what begins at byte ``start`` of a slot: bits, size, first byte, columns of a part, first
    column, and number of its first part.
    """
    tiles, column, part = [], 0, 0
    for tier, _, place in pieces(form):
        columns = width(low_numbers(tier))
        tiles.append((tier.bits, tier.size, start + place.start, columns, column, part))
        column, part = column + parts(tier) * columns, part + parts(tier)
    return tuple(tiles)


def used_bytes(form: CodedFormat) -> int:
    """Bytes that are no padding."""
    return sum(form.payload_bytes(tier) for tier in form.tiers)


def column_count(form: CodedFormat) -> int:
    return sum(parts(tier) * width(low_numbers(tier)) for tier in form.tiers)


def columns(form: CodedFormat) -> torch.Tensor:
    """The column of every number, int64 ``[rank]``."""
    places = []
    for (_, size, _, apart, first, _), tier in zip(code_tiles(form, 0), form.tiers, strict=True):
        number, low = torch.arange(size), low_numbers(tier)
        places.append(first + number // low * apart + number % low)
    return torch.cat(places)


def in_columns(matrix: torch.Tensor, form: CodedFormat) -> torch.Tensor:
    """``matrix [..., rank]`` as ``[..., columns]``, zero where no number is."""
    out = matrix.new_zeros((*matrix.shape[:-1], column_count(form)))
    out[..., columns(form).to(matrix.device)] = matrix
    return out
