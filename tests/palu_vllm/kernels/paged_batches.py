"""Random layers and batches, laid out as vLLM lays them out, with NaN wherever nobody may look."""

from dataclasses import dataclass, replace

import torch

from palu_vllm.format.packing import pack, unpack
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch
from palu_vllm.kernels.reference import store_latents
from tests.support.shapes import Layer

PADDING_ROWS = 3
SPARE_BLOCKS = 2
UNTOUCHED = 77.0  # what rows of padding hold before and after


@dataclass(frozen=True)
class Latents:
    """Every token of every request, in order of requests."""

    latent_k: torch.Tensor  # [tokens, num_groups, numbers_k]
    latent_v: torch.Tensor  # [tokens, num_groups, numbers_v]
    slot_mapping: torch.Tensor  # [tokens] int64


@dataclass(frozen=True)
class Problem:
    """One call of ``attend`` and all that led to its cache."""

    shape: LayerShape
    rebuild: KeyRebuild
    latents: Latents
    query: torch.Tensor  # [tokens + PADDING_ROWS, num_heads, head_dim]
    cache: torch.Tensor  # [num_blocks, num_groups, block_size, slot_width]; block 0 is vLLM's null block
    batch: PagedBatch

    def stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of every group of K and of V as the cache gives them back: quantized where they are packed."""
        form, tokens = self.shape.slot, len(self.latents.latent_k)
        latent_k = self.latents.latent_k.view(tokens, -1, self.shape.rank_k)
        latent_v = self.latents.latent_v.view(tokens, -1, self.shape.rank_v)
        if form is None:
            return latent_k, latent_v
        return unpack(pack(latent_k, form.key), form.key), unpack(pack(latent_v, form.value), form.value)

    def empty_out(self) -> torch.Tensor:
        rows, heads, _ = self.query.shape
        return torch.full((rows, heads, self.shape.rank_v), UNTOUCHED, dtype=self.query.dtype)


def cos_sin_table(max_position: int, rotary_dim: int, theta: float = 10000.0) -> torch.Tensor:
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def random_rebuild(layer: Layer, dtype: torch.dtype, max_position: int, generator: torch.Generator) -> KeyRebuild:
    shape = layer.shape
    width = shape.group_size_k * shape.head_dim
    k_up = torch.randn(shape.num_groups_k, shape.rank_k, width, generator=generator) / shape.rank_k**0.5
    bias = torch.randn(shape.num_kv_heads * shape.head_dim, generator=generator)
    norm = 1 + torch.randn(shape.head_dim, generator=generator) / 2 if layer.has_key_norm else None
    return KeyRebuild(
        k_up=k_up.to(dtype) if layer.compressed else None,
        k_bias=bias.to(dtype) if layer.has_bias else None,
        cos_sin=cos_sin_table(max_position, shape.rotary_width, layer.theta),
        k_norm=None if norm is None else norm.to(dtype),
        k_norm_eps=0.1,  # large enough to be noticed
    )


def random_block_table(seq_lens: list[int], block_size: int, generator: torch.Generator) -> torch.Tensor:
    """``[requests, max_blocks]`` int32: distinct blocks in random order; entries past a request name the null block."""
    needed = [-(-length // block_size) for length in seq_lens]
    free = (torch.randperm(sum(needed) + SPARE_BLOCKS, generator=generator) + 1).tolist()
    table = torch.zeros(len(seq_lens), max(needed) + 1, dtype=torch.int32)
    for request, count in enumerate(needed):
        table[request, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
    return table


def slots_of(block_table: torch.Tensor, seq_lens: list[int], block_size: int) -> torch.Tensor:
    slots = []
    for request, length in enumerate(seq_lens):
        positions = torch.arange(length)
        slots.append(block_table[request, positions // block_size].long() * block_size + positions % block_size)
    return torch.cat(slots)


def poisoned_cache(shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype) -> torch.Tensor:
    """All NaN, with the strides of vLLM's pool: tokens of a block before its groups. Packed, every scale is NaN."""
    value, dtype = (float("nan"), dtype) if shape.slot is None else (255, torch.uint8)
    return torch.full((num_blocks, block_size, shape.num_groups, shape.slot_width), value, dtype=dtype).transpose(1, 2)


def random_problem(
    layer: Layer,
    requests: list[tuple[int, int]],
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    """A batch of ``requests``, pairs of (query_len, seq_len), whose latents are all in the cache."""
    generator = torch.Generator().manual_seed(seed)
    shape = layer.shape
    query_lens, seq_lens = [query_len for query_len, _ in requests], [seq_len for _, seq_len in requests]
    tokens = sum(seq_lens)
    block_table = random_block_table(seq_lens, block_size, generator)
    latents = Latents(
        latent_k=torch.randn(tokens, shape.num_groups, shape.numbers_k, generator=generator).to(dtype),
        latent_v=torch.randn(tokens, shape.num_groups, shape.numbers_v, generator=generator).to(dtype),
        slot_mapping=slots_of(block_table, seq_lens, block_size),
    )
    num_blocks = sum(-(-length // block_size) for length in seq_lens) + SPARE_BLOCKS + 1
    cache = poisoned_cache(shape, num_blocks, block_size, dtype)
    store_latents(latents.latent_k, latents.latent_v, cache, latents.slot_mapping, shape.slot)
    rows = sum(query_lens) + PADDING_ROWS
    return Problem(
        shape=shape,
        rebuild=random_rebuild(layer, dtype, max(seq_lens), generator),
        latents=latents,
        query=torch.randn(rows, shape.num_heads, shape.head_dim, generator=generator).to(dtype),
        cache=cache,
        batch=PagedBatch(
            block_table=block_table,
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            query_start_loc=torch.tensor([0, *query_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
        ),
    )


def only_request(problem: Problem, request: int) -> Problem:
    """The same cache with a batch of one request."""
    batch = problem.batch
    start, stop = batch.query_start_loc[request : request + 2].tolist()
    alone = PagedBatch(
        block_table=batch.block_table[request : request + 1],
        seq_lens=batch.seq_lens[request : request + 1],
        query_start_loc=torch.tensor([0, stop - start], dtype=torch.int32),
        max_query_len=stop - start,
        max_seq_len=int(batch.seq_lens[request]),
    )
    return replace(problem, query=problem.query[start:stop], batch=alone)
