"""Attention over a codec's slots in about a quarter of the bytes, as it is served on a GPU."""

from dataclasses import replace

import torch

from benchmarks.kernels.roofline_model import Work, codec_work
from benchmarks.latency.attention_case import Case, ServedArm, UnavailableError
from benchmarks.latency.cpu_arms import Tiers, random_codec
from palu_vllm.kernels.choose import codec_attention
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention

# of K and of V by the width of a group, for a layer's heads in groups of four; the shares are those of `cpu_codec`
FOUR_TIMES: dict[int, tuple[Tiers, Tiers]] = {
    128: (((32, 5), (32, 4), (56, 3), (8, 2)), ((24, 5), (56, 4), (40, 3), (8, 2))),
    512: (((128, 5), (128, 4), (224, 3), (32, 2)), ((96, 5), (208, 4), (176, 3), (32, 2))),
}


class Codec(ServedArm):
    """The specification reads the same slots, so that coding is no error."""

    rotates_first = True
    tolerance = 0.02

    def __init__(self, case: Case) -> None:
        shape, self.case = case.layer.shape, case
        group = shape.group_size * shape.head_dim
        if group not in FOUR_TIMES:
            raise UnavailableError(f"no codec for groups of {group} numbers; known: {sorted(FOUR_TIMES)}")
        codec = random_codec(shape.num_kv_heads, shape.head_dim, shape.num_groups, FOUR_TIMES[group])
        self.codec = codec.to(case.device)
        self.shape, self.settings = shape, CodecSettings(shape.num_heads, shape.scale)
        self.attention = codec_attention("cuda")(self.codec, self.settings)
        sizes = (case.num_blocks, shape.num_groups, case.block_size, codec.slot.bytes)
        self.cache = torch.zeros(sizes, dtype=torch.uint8, device=case.device)
        self.out = case.random(case.batch.requests, shape.num_heads, shape.head_dim)
        width = shape.num_kv_heads * shape.head_dim
        self.projections = ((shape.num_heads * shape.head_dim, width, width),)
        for positions in case.chunks():
            self.place(positions)
            self.store(*(case.random(len(self.slots), width) for _ in range(2)))
        self.place(case.newest)

    def place(self, positions: torch.Tensor) -> None:
        """Says which tokens ``store`` writes: these of every request."""
        self.slots, self.positions = self.case.slots(positions), positions.repeat(self.case.batch.requests)

    @property
    def out_width(self) -> int:
        return self.shape.head_dim

    def store(self, first: torch.Tensor, second: torch.Tensor) -> None:
        key, value = (each.unflatten(-1, (self.shape.num_kv_heads, -1)) for each in (first, second))
        self.attention.store(key, value, self.positions, self.cache, self.slots)

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """As the first layer of a step, which makes what later ones share."""
        self.attention.attend(query, self.cache, replace(self.case.paged), self.out)
        return self.out

    def specification(self) -> CodecAttention:
        return CodecAttention(self.codec, self.settings)

    def least_work(self) -> list[Work]:
        return [codec_work(self.shape, self.case.batch, self.codec.bytes_per_token)]
