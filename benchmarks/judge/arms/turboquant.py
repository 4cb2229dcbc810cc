"""TurboQuant as vLLM 0.32 has it: keys mixed, normalised, and coded by Lloyd-Max levels; values by equal steps.

Norm correction gives a coded key its norm back. The two first and the two last layers stay in 16 bits, as vLLM leaves
them. A server attends to its first chunk of a prompt uncoded; the judge reads all tokens as decoding would.
"""

from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.judge.arms.arm import CacheArm, Heads, Layer
from benchmarks.judge.arms.mixing import float16, hadamard
from palu_vllm.format.kv import KV

BOUNDARY_LAYERS = 2  # at either end
NORM_BYTES, SCALE_AND_ZERO_BYTES = 2, 4
EDGE, ROUNDS = 3.5, 200  # of the iteration, in standard deviations


@cache
def levels(size: int, bits: int) -> torch.Tensor:
    """Lloyd-Max levels of a normal variable of variance 1/size, by the same iteration on the same grid as vLLM's."""
    sigma = size**-0.5
    low, high = -EDGE * sigma, EDGE * sigma
    found = low + (high - low) * (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    for _ in range(ROUNDS):
        inner = (found[1:] + found[:-1]) / 2
        edges = torch.cat([inner.new_tensor([3 * low]), inner, inner.new_tensor([3 * high])])
        points = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * grid
        density = torch.exp(-points.square() * size / 2)
        new = torch.trapezoid(points * density, points) / torch.trapezoid(density, points)
        if (new - found).abs().max() < 1e-10:
            break
        found = new
    return found.float()


def coded_keys(keys: torch.Tensor, bits: int, norm_correction: bool) -> torch.Tensor:
    """``keys [..., head_dim]``, coded and read back."""
    size = keys.shape[-1]
    norms, table = keys.norm(dim=-1, keepdim=True), levels(size, bits)
    mixed = keys / (norms + 1e-8) @ hadamard(size)
    read = table[torch.bucketize(mixed, (table[1:] + table[:-1]) / 2, right=True)]
    if norm_correction:
        read = read / (read.square().sum(-1, keepdim=True) + 1e-16).sqrt()
    return float16(norms) * read @ hadamard(size)


def coded_values(values: torch.Tensor, bits: int) -> torch.Tensor:
    """``values [..., head_dim]``, coded in equal steps from the least one, and read back."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    codes = ((values - low) / scale + 0.5).trunc().clamp(0, 2**bits - 1)
    return codes * float16(scale) + float16(low)


@dataclass(frozen=True)
class TurboQuant(CacheArm):
    preset: str  # vLLM's, without "turboquant_"
    key_bits: int
    value_bits: int
    norm_correction: bool = True

    @property
    def name(self) -> str:
        return f"turboquant_{self.preset}"

    def skips(self, layer: Layer) -> bool:
        edge = min(BOUNDARY_LAYERS, layer.num_layers // 2)
        return not edge <= layer.index < layer.num_layers - edge

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        if self.skips(layer):
            return whole
        keys = coded_keys(whole.key, self.key_bits, self.norm_correction)
        return KV(keys, coded_values(whole.value, self.value_bits))

    def head_bytes(self, head_dim: int) -> float:
        size = -(-head_dim * self.key_bits // 8) + NORM_BYTES + -(-head_dim * self.value_bits // 8)
        return size + SCALE_AND_ZERO_BYTES + (size + SCALE_AND_ZERO_BYTES) % 2

    def coded_fraction(self, heads: Heads, context: int) -> float:
        skipped = sum(self.skips(Layer(index, heads.num_layers)) for index in range(heads.num_layers))
        return 1 - skipped / heads.num_layers
