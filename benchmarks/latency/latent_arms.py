"""Attention over latents, as it is served on a GPU: this repository's Triton kernels."""

import torch

from benchmarks.kernels.roofline import absorption_of
from benchmarks.kernels.roofline_model import Work, latents_and_rebuild
from benchmarks.latency.attention_case import Case, ServedArm
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.interface import KeyRebuild
from palu_vllm.kernels.reference import ReferenceAttention


class Palu(ServedArm):
    """Latents of ``bits``. The reference reads the same cache, so that packing is no error."""

    rotates_first = False
    tolerance = 0.02

    def __init__(self, case: Case, bits: int = 16) -> None:
        self.case, self.layer = case, case.layer.in_bits(bits)
        self.shape = shape = self.layer.shape
        k_up = case.random(shape.num_groups_k, shape.rank_k, shape.group_size_k * shape.head_dim) / shape.rank_k**0.5
        bias = case.random(shape.num_kv_heads * shape.head_dim) if self.layer.has_bias else None
        norm = 1 + case.random(shape.head_dim) / 2 if self.layer.has_key_norm else None
        self.rebuild = KeyRebuild(k_up, bias, case.rotations, norm)
        self.attention = TritonAttention(shape, self.rebuild)
        dtype = case.dtype if bits == 16 else torch.uint8
        sizes = (case.num_blocks, case.block_size, shape.num_groups, shape.slot_width)
        self.cache = torch.empty(sizes, dtype=dtype, device=case.device).transpose(1, 2)
        self.out = torch.empty(case.batch.requests, shape.num_heads, shape.rank_v, dtype=case.dtype, device=case.device)
        widths = shape.num_groups_k * shape.rank_k, shape.num_groups_v * shape.rank_v
        self.projections = ((shape.num_heads * shape.head_dim,), *((width,) for width in widths))
        for positions in case.chunks():
            self.slots = case.slots(positions)
            self.store(*(case.random(len(self.slots), width) for width in widths))
        self.slots = case.slots(case.newest)

    @property
    def out_width(self) -> int:
        return self.shape.rank_v

    def store(self, first: torch.Tensor, second: torch.Tensor) -> None:
        key, value = (latents.unflatten(-1, (self.shape.num_groups, -1)) for latents in (first, second))
        self.attention.store(key, value, self.cache, self.slots)

    def specification(self) -> ReferenceAttention:
        return ReferenceAttention(self.shape, self.rebuild)

    def least_work(self) -> list[Work]:
        plans = (None, absorption_of(self.layer))
        return [latents_and_rebuild(self.shape, self.case.batch, plan) for plan in plans]
