"""vLLM's ``fp8_e4m3``, ``fp8_e5m2`` and ``nvfp4`` as GPUs store them: nearest, saturated, with scales of one.

vLLM's CPU kernels cut fp8 numbers towards zero instead. Scales of one are what a server has without a calibrated
checkpoint. nvfp4 has a scale in e4m3 for 16 numbers.
"""

from dataclasses import dataclass

import torch

from benchmarks.judge.arms.arm import CacheArm, Layer
from palu_vllm.format.kv import KV

DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # magnitudes of e2m1
BLOCK = 16


def saturated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest numbers of ``dtype``; what is too large becomes the largest."""
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype).float()


def nvfp4(x: torch.Tensor) -> torch.Tensor:
    """``x [..., head_dim]`` through e2m1 codes with a scale for 16 numbers."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    scale = saturated(blocks.abs().amax(-1, keepdim=True) / LEVELS[-1], torch.float8_e4m3fn)
    wanted = (blocks / scale.clamp_min(1e-12)).clamp(-6, 6)
    between = (LEVELS[1:] + LEVELS[:-1]) / 2
    nearest = LEVELS[torch.bucketize(wanted.abs(), between)]
    return (nearest * wanted.sign() * scale).flatten(-2)


@dataclass(frozen=True)
class Fp8(CacheArm):
    kind: str

    @property
    def name(self) -> str:
        return self.kind

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        return KV(*(saturated(x, DTYPES[self.kind]) for x in whole))

    def head_bytes(self, head_dim: int) -> float:
        return 2 * head_dim


@dataclass(frozen=True)
class Nvfp4(CacheArm):
    name = "nvfp4"

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        return KV(*map(nvfp4, whole))

    def head_bytes(self, head_dim: int) -> float:
        return 2 * (head_dim / 2 + head_dim / BLOCK)
