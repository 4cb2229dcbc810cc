"""Numbers in few bits, really packed: codes with a float16 scale and minimum per group. ``2^bits - 1`` steps."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import expect
from palu_vllm.format.packing import pack_codes, quantize, unpack_codes

BITS = (8, 4, 3, 2)


@dataclass(frozen=True)
class Codes:
    """``[..., groups * group_size]`` numbers, grouped along their last dimension."""

    packed: torch.Tensor  # uint8 [..., groups, bytes]
    scale: torch.Tensor  # float16 [..., groups, 1]
    minimum: torch.Tensor  # float16 [..., groups, 1]
    bits: int
    group_size: int

    @classmethod
    def of(cls, x: torch.Tensor, bits: int, group_size: int) -> "Codes":
        """Raises ValueError if the last dimension of ``x`` is no multiple of ``group_size``."""
        expect(bits in BITS, f"got {bits} bits, expected one of {', '.join(map(str, BITS))}")
        expect(x.shape[-1] % group_size == 0, f"{x.shape[-1]} numbers do not divide into groups of {group_size}")
        codes, scale, minimum = quantize(x.unflatten(-1, (-1, group_size)), bits)
        return cls(pack_codes(codes, bits), scale, minimum, bits, group_size)

    def read(self) -> torch.Tensor:
        """float32 ``[..., groups * group_size]``."""
        codes = unpack_codes(self.packed, self.group_size, self.bits).float()
        return (codes * self.scale.float() + self.minimum.float()).flatten(-2)

    def followed_by(self, other: "Codes", dim: int) -> "Codes":
        """Both, joined along ``dim`` of the packed codes, counted from the front: nothing is quantized again."""

        def join(field: str) -> torch.Tensor:
            return torch.cat([getattr(self, field), getattr(other, field)], dim)

        return Codes(join("packed"), join("scale"), join("minimum"), self.bits, self.group_size)


def per_channel(keys: torch.Tensor, bits: int, group_size: int) -> Codes:
    """Codes of ``keys [kv_heads, tokens, head_dim]``, in groups of tokens of one channel; joined along dim 2."""
    return Codes.of(keys.transpose(1, 2), bits, group_size)


def read_per_channel(codes: Codes) -> torch.Tensor:
    """What ``per_channel`` took, float32 ``[kv_heads, tokens, head_dim]``."""
    return codes.read().transpose(1, 2)


def per_token(values: torch.Tensor, bits: int, group_size: int) -> Codes:
    """Codes of ``values [kv_heads, tokens, head_dim]``, in groups of neighbouring numbers of one token, heads after
    one another; joined along dim 0.
    """
    return Codes.of(values.transpose(0, 1).flatten(1), bits, group_size)


def read_per_token(codes: Codes, kv_heads: int) -> torch.Tensor:
    """What ``per_token`` took, float32 ``[kv_heads, tokens, head_dim]``."""
    return codes.read().unflatten(1, (kv_heads, -1)).transpose(0, 1)
