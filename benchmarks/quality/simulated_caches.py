"""Caches of rivals that only quantize, *simulated*: numbers go through their codes and back, in a transformers cache.

Bytes are counted as the real caches would store them: codes, scales and minima, nothing for alignment. Quantization is
this project's own (``palu_vllm.format.packing``): asymmetric, float16 scale and minimum, as good as either rival's or
better.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from palu_vllm.format.config import AttentionGeometry
from palu_vllm.format.latent_format import HEADER_BYTES, LatentFormat, Tier
from palu_vllm.format.packing import pack, unpack

GROUP = 32  # numbers that share a scale in KIVI


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """``x [..., size]`` quantized over its last dimension and read back."""
    form = LatentFormat((Tier(x.shape[-1], bits),), "float32")
    return unpack(pack(x, form), form)


@dataclass(frozen=True)
class PerTokenHead:
    """One scale per token and head, as vLLM's ``int4_per_token_head``."""

    bits: int

    @property
    def name(self) -> str:
        return f"int{self.bits} per token and head (simulated)"

    def bytes_per_token(self, geometry: AttentionGeometry) -> float:
        part = geometry.head_dim * self.bits / 8 + HEADER_BYTES
        return 2 * geometry.num_layers * geometry.num_kv_heads * part

    def keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Rotated keys ``[batch, heads, tokens, head_dim]`` as they would be read."""
        return rounded(keys, self.bits)

    def values(self, values: torch.Tensor) -> torch.Tensor:
        return rounded(values, self.bits)


@dataclass(frozen=True)
class Kivi:
    """KIVI (arXiv 2402.02750): keys per channel over 32 tokens, values per token over 32 channels.

    Without its window of recent tokens in 16 bits, which only matters for the last 32 to 128 tokens of a context; the
    tokens after the last whole group stay exact.
    """

    bits: int

    @property
    def name(self) -> str:
        return f"KIVI {self.bits} bits, no residual window (simulated)"

    def bytes_per_token(self, geometry: AttentionGeometry) -> float:
        part = geometry.head_dim * (self.bits / 8 + HEADER_BYTES / GROUP)
        return 2 * geometry.num_layers * geometry.num_kv_heads * part

    def keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Rotated keys ``[batch, heads, tokens, head_dim]`` as they would be read."""
        whole = keys.shape[2] // GROUP * GROUP
        per_channel = keys[:, :, :whole].transpose(2, 3).unflatten(-1, (-1, GROUP))
        read = rounded(per_channel, self.bits).flatten(-2).transpose(2, 3)
        return torch.cat((read, keys[:, :, whole:]), dim=2)

    def values(self, values: torch.Tensor) -> torch.Tensor:
        return rounded(values.unflatten(-1, (-1, GROUP)), self.bits).flatten(-2)


@dataclass(frozen=True)
class Fp8:
    """Numbers cast to 8-bit floats, without scales, as vLLM's ``fp8`` caches are by default."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} (simulated)"

    def bytes_per_token(self, geometry: AttentionGeometry) -> float:
        return 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim

    def keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Rotated keys ``[batch, heads, tokens, head_dim]`` as they would be read."""
        return keys.to(self.dtype).to(keys.dtype)

    def values(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.dtype).to(values.dtype)


Simulated = Fp8 | PerTokenHead | Kivi
FP8 = (Fp8(torch.float8_e4m3fn), Fp8(torch.float8_e5m2))
ARMS: tuple[Simulated, ...] = (
    *FP8,
    *(PerTokenHead(bits) for bits in (8, 4, 3, 2)),
    *(Kivi(bits) for bits in (4, 3, 2)),
)


class SimulatedCache(DynamicCache):
    """A cache that gives back what ``arm`` would, for one forward pass over a whole row."""

    def __init__(self, arm: Simulated) -> None:
        super().__init__()
        self.arm = arm

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        keys, values = self.arm.keys(key_states), self.arm.values(value_states)
        return super().update(keys.to(key_states), values.to(value_states), layer_idx, *args, **kwargs)
