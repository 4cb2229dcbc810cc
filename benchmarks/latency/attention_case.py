"""What all arms of the latency benchmarks share: one layer, one batch, its blocks, and how an arm is used."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from benchmarks.kernels.layers import Layer
from benchmarks.kernels.roofline_model import Batch, Work
from palu_vllm.kernels.gpu.tiling import ceil_div
from palu_vllm.kernels.interface import PagedBatch

CHUNK = 4096  # tokens that are written to a cache at once


class UnavailableError(Exception):
    """An arm that cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """``batch.requests`` requests decode one token each over ``batch.context`` tokens, that one included."""

    layer: Layer  # its latents not packed
    hidden_size: int
    batch: Batch
    dtype: torch.dtype
    device: torch.device
    block_size: int

    @cached_property
    def rotations(self) -> torch.Tensor:
        """``[context, head_dim]`` float32."""
        return self.layer.rotations(self.batch.context).to(self.device)

    @cached_property
    def paged(self) -> PagedBatch:
        """Every request's blocks, in random order."""
        requests, blocks = self.batch.requests, ceil_div(self.batch.context, self.block_size)
        table = torch.randperm(requests * blocks, device=self.device).view(requests, blocks)
        return PagedBatch(
            block_table=table.int(),
            seq_lens=torch.full((requests,), self.batch.context, dtype=torch.int32, device=self.device),
            query_start_loc=torch.arange(requests + 1, dtype=torch.int32, device=self.device),
            max_query_len=1,
            max_seq_len=self.batch.context,
        )

    @property
    def num_blocks(self) -> int:
        return self.paged.block_table.numel()

    def slots(self, positions: torch.Tensor) -> torch.Tensor:
        """Of these positions of every request, int64 ``[requests * positions]``, request by request."""
        blocks = self.paged.block_table[:, positions // self.block_size].long()
        return (blocks * self.block_size + positions % self.block_size).flatten()

    @property
    def newest(self) -> torch.Tensor:
        return torch.tensor([self.batch.context - 1], device=self.device)

    def chunks(self) -> tuple[torch.Tensor, ...]:
        """All positions, few at a time."""
        return torch.arange(self.batch.context, device=self.device).split(CHUNK)

    def random(self, *sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.float32, device=self.device).to(self.dtype)


class Arm(ABC):
    """One way to store a token and to attend, over a cache of random contents. Raises UnavailableError when built."""

    projections: tuple[tuple[int, ...], ...]  # widths of query, first, second; those of one tuple are one product
    rotates_first: bool  # whether what is stored first (keys) is rotated before
    tolerance: float  # relative error against float32 that is still right

    @property
    @abstractmethod
    def out_width(self) -> int:
        """Numbers per query head that ``attend`` returns."""

    @abstractmethod
    def store(self, first: torch.Tensor, second: torch.Tensor) -> None:
        """Writes the newest token of every request: keys and values, or their latents, ``[requests, width]``."""

    @abstractmethod
    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """``query [requests, num_heads, head_dim]``, rotated, to ``[requests, num_heads, out_width]``."""

    @abstractmethod
    def expected(self, query: torch.Tensor) -> torch.Tensor:
        """What ``attend`` must return, in float32."""

    @abstractmethod
    def least_work(self) -> list[Work]:
        """What ``attend`` has to do at least, by each plan that there is."""


class ServedArm(Arm):
    """Attention of ours over ``cache``, with the implementation that is served and its specification."""

    case: Case
    attention: Any  # of ``kernels.interface`` or ``kernels.codec.interface``
    cache: torch.Tensor
    out: torch.Tensor

    @abstractmethod
    def specification(self) -> Any:
        """What reads the same cache in float32."""

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        self.attention.attend(query, self.cache, self.case.paged, self.out)
        return self.out

    def expected(self, query: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(self.out, dtype=torch.float32)
        self.specification().attend(query.float(), self.cache, self.case.paged, out)
        return out
