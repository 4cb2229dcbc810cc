"""GEAR's recipe on latents, *simulated*: codes, a low-rank matrix of their error per block of tokens, and outliers.

A block is what a page of the cache would hold by itself: codes of its tokens, of their error the best factors of a
small rank (GEAR, Kang et al. 2024, arXiv 2403.05527; its power iteration), and from every token the same number of
largest and smallest numbers, kept as they are beside their places. Here numbers go through that and back. It is kinder
to GEAR than a cache could be: a token already sees its own block compressed as if all of it were there, where a
cache would hold an unfinished block in 16 bits, which is not counted.
"""

from dataclasses import dataclass

import torch

from benchmarks.methods.low_rank import LowRank
from benchmarks.methods.outliers import Outliers, index_dtype
from palu_vllm.latent_format import HEADER_BYTES, LatentFormat, Tier, plane_bytes
from palu_vllm.packing import quantize, rounded
from palu_vllm.rotation import spreading_matrix

ITERATIONS = 3  # as published
NUMBER_BYTES = 2
QUANTIZERS = ("rotated", "per token", "per channel")


@dataclass(frozen=True)
class Residual:
    """How a block of latents is stored. ``rank`` 0 leaves the error out; of outliers there are two times ``outliers``.

    ``quantizer``: codes of rotated latents, with a scale and a minimum per token (the error and the outliers too are
    those of rotated latents); the same without a rotation; or with a scale and a minimum per channel of the block, as
    GEAR has for keys.
    """

    quantizer: str
    bits: int
    block: int
    rank: int
    outliers: int

    def form(self, width: int) -> LatentFormat:
        return LatentFormat((Tier(width, self.bits),), "float16")

    def bytes(self, width: int) -> float:
        """Per token and latent of ``width`` numbers."""
        codes = plane_bytes(width * self.block, self.bits) / self.block + HEADER_BYTES * width / self.block
        codes = codes if self.quantizer == "per channel" else self.form(width).bytes
        error = NUMBER_BYTES * self.rank * (1 + width / self.block)
        return codes + error + 2 * self.outliers * (NUMBER_BYTES + index_dtype(width).itemsize)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """``latents [tokens, groups, width]``, tokens a multiple of the block, there and back again."""
        spread = self.quantizer == "rotated"
        rotation = spreading_matrix(latents.shape[-1]).to(latents)
        numbers = latents @ rotation if spread else latents
        blocks = numbers.transpose(0, 1).unflatten(1, (-1, self.block)).flatten(0, 1)
        stored = Stored.of(blocks, self).read().unflatten(0, (latents.shape[1], -1)).flatten(1, 2).transpose(0, 1)
        return stored @ rotation if spread else stored


@dataclass(frozen=True)
class Stored:
    """Blocks ``[blocks, tokens, width]`` as they are kept; codes are held as the numbers that they stand for."""

    numbers: torch.Tensor
    error: LowRank | None
    outliers: Outliers | None

    @classmethod
    def of(cls, blocks: torch.Tensor, way: Residual) -> "Stored":
        outliers, filled = None, blocks
        if way.outliers:
            outliers = Outliers.extremes(blocks, way.outliers, torch.float16)
            rest = outliers.replaced(blocks, blocks.new_zeros(1)).sum(-1, keepdim=True)
            filled = outliers.replaced(blocks, rest / (blocks.shape[-1] - 2 * way.outliers))
        numbers = through_codes(filled, way)
        whole = numbers if outliers is None else outliers.restored(numbers)
        error = LowRank.of(blocks - whole, way.rank, ITERATIONS, torch.float16) if way.rank else None
        return cls(numbers, error, outliers)

    def read(self) -> torch.Tensor:
        whole = self.numbers if self.outliers is None else self.outliers.restored(self.numbers)
        return whole if self.error is None else whole + self.error.read()

    def bytes_beside_codes(self) -> int:
        """Of the tensors that are held."""
        held = [self.error.left, self.error.right] if self.error else []
        held += [self.outliers.indices, self.outliers.values] if self.outliers else []
        return sum(tensor.nbytes for tensor in held)


def through_codes(blocks: torch.Tensor, way: Residual) -> torch.Tensor:
    """``blocks [blocks, tokens, width]`` quantized and read back, float32."""
    if way.quantizer != "per channel":
        return rounded(blocks, way.form(blocks.shape[-1]))
    codes, scale, minimum = quantize(blocks.mT, way.bits)
    return (codes.float() * scale.float() + minimum.float()).mT
