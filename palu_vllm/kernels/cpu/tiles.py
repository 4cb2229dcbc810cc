"""Tiles of context: which ones a query needs, and their latents turned into rotated keys, in vectorised torch.

Two layouts make it fast. Keys are head-major, so that the keys of one head in one tile are a matrix. The two numbers
of a rotary pair are neighbours (``pair_up``), so that rotating is one complex product in place; queries are paired
alike, which leaves their products with keys as they were.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from palu_vllm.format.packing import unpack
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.absorbed import known_frequencies, rotations
from palu_vllm.kernels.interface import KeyRebuild


class Scratch(threading.local):
    """Buffers that stay from step to step and layer to layer: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uninitialised; valid until the next ``take`` of the same name."""
        size = math.prod(shape)
        if (name, dtype) not in self.buffers or self.buffers[name, dtype].numel() < size:
            with torch.inference_mode(False):
                self.buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return self.buffers[name, dtype][:size].view(shape)


scratch = Scratch()
_rotations = WeakTensorKeyDictionary()


def known_rotations(cos_sin: torch.Tensor, head_dim: int) -> torch.Tensor:
    """``rotations``; one copy for all the layers that share a table."""
    known = _rotations.setdefault(cos_sin, {})
    if head_dim not in known:
        known[head_dim] = rotations(cos_sin, head_dim)
    return known[head_dim]


def pair_up(x: torch.Tensor, rotary_dim: int | None = None) -> torch.Tensor:
    """Float32, the last dimension reordered from (first halves, second halves) to (pair 0, pair 1, ...), the pairs of
    ``as_pairs``.
    """
    parts = x.float().tensor_split((rotary_dim or x.shape[-1],), dim=-1)
    paired = [part.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for part in parts if part.shape[-1]]
    return torch.cat(paired, dim=-1) if len(paired) > 1 else paired[0]


def one_per_group(latents: torch.Tensor, count: int) -> torch.Tensor:
    """``[num_groups, tokens, count * rank]`` as ``[num_groups * count, tokens, rank]``, a copy but for one."""
    if count == 1:
        return latents
    return latents.unflatten(-1, (count, -1)).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Tiles:
    """Tiles of context that are worked on together. A tile belongs to one owner, a run of queries of one request."""

    owner: torch.Tensor  # [tiles] int64: row of the block table
    positions: torch.Tensor  # [tiles, tile_tokens] int64
    unused: torch.Tensor  # [tiles, tile_tokens] bool: no query sees them; they may hold anything, NaN included

    def blocks(self, block_table: torch.Tensor, block_size: int) -> torch.Tensor:
        """Ids of the blocks, flat; 0 for blocks of unused slots only, whose entries say nothing."""
        # of shape [tiles, blocks_per_tile]
        columns = self.positions[:, ::block_size] // block_size
        ids = block_table[self.owner[:, None], columns.clamp(max=block_table.shape[1] - 1)]
        return ids.masked_fill(self.unused.unflatten(1, (-1, block_size)).all(-1), 0).flatten()


def cover(first: torch.Tensor, last: torch.Tensor, tile_tokens: int, tiles_per_step: int) -> Iterator[Tiles]:
    """The tiles that hold positions ``first .. last`` (int64 ``[owners]``, both included), in steps; where ``last`` is
    before ``first``, one unused tile or none.
    """
    tile_of_first = first // tile_tokens
    counts = (last // tile_tokens - tile_of_first + 1).clamp(min=0)
    # of shape [tiles]
    owners = torch.repeat_interleave(counts)
    indices = torch.arange(len(owners)) + (tile_of_first - counts.cumsum(0) + counts)[owners]
    if not len(owners):
        return
    for owner, index in zip(owners.split(tiles_per_step), indices.split(tiles_per_step), strict=True):
        positions = index[:, None] * tile_tokens + torch.arange(tile_tokens)
        yield Tiles(owner, positions, (positions < first[owner, None]) | (positions > last[owner, None]))


class KeySource:
    """Reads latents from the cache and rebuilds their keys. Constants are prepared once per layer."""

    def __init__(self, shape: LayerShape, rebuild: KeyRebuild) -> None:
        self.shape = shape
        self.rotations = known_rotations(rebuild.cos_sin, shape.head_dim)
        self.frequencies = known_frequencies(rebuild.cos_sin, shape.head_dim)
        self.k_up = self.k_bias = self.k_norm = None
        self.k_norm_eps = rebuild.k_norm_eps
        if rebuild.k_up is not None:  # [num_groups_k, group_size_k, rank_k, head_dim]
            per_head = rebuild.k_up.unflatten(-1, (shape.group_size_k, shape.head_dim)).transpose(1, 2)
            self.k_up = pair_up(per_head, shape.rotary_dim).contiguous()
        if rebuild.k_bias is not None:  # [num_kv_heads, 1, head_dim]
            self.k_bias = pair_up(rebuild.k_bias.view(shape.num_kv_heads, 1, shape.head_dim), shape.rotary_dim)
        if rebuild.k_norm is not None:  # [head_dim]
            self.k_norm = pair_up(rebuild.k_norm, shape.rotary_dim)

    def latents(
        self, cache: torch.Tensor, blocks: torch.Tensor, unused: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 ``[num_groups_k, tokens, rank_k]`` and ``[num_groups_v, tokens, rank_v]`` of ``blocks``; zeros where
        ``unused [tokens]``.
        """
        slots = scratch.take("slots", cache.shape[1], len(blocks), *cache.shape[2:], dtype=cache.dtype)
        for group, out in enumerate(slots):
            torch.index_select(cache[:, group], 0, blocks, out=out)
        numbers = self._numbers(slots.flatten(1, 2)).index_fill_(1, unused.nonzero().flatten(), 0.0)
        latent_k, latent_v = numbers.tensor_split((self.shape.numbers_k,), dim=-1)
        return one_per_group(latent_k, self.shape.key_latents), one_per_group(latent_v, self.shape.value_latents)

    def _numbers(self, slots: torch.Tensor) -> torch.Tensor:
        """Float32 ``[num_groups, tokens, numbers of a slot]`` of ``slots [num_groups, tokens, slot_width]``: key
        latents, then value latents.
        """
        shape, form = self.shape, self.shape.slot
        if form is None:
            return slots.float()
        numbers = scratch.take("numbers", *slots.shape[:2], shape.numbers_k + shape.numbers_v)
        stored = slots.tensor_split((shape.value_start,), dim=-1)
        out = numbers.tensor_split((shape.numbers_k,), dim=-1)
        for packed, part, side in zip(stored, (form.key, form.value), out, strict=True):
            unpack(packed.unflatten(-1, (-1, part.bytes)), part, side.unflatten(-1, (-1, part.rank)))
        return numbers

    def keys(self, latent_k: torch.Tensor) -> torch.Tensor:
        """Keys before rotation ``[num_kv_heads, tokens, head_dim]`` of ``latent_k [num_groups_k, tokens, rank_k]``."""
        shape = self.shape
        if self.k_up is None:
            whole_keys = latent_k.unflatten(-1, (shape.group_size_k, shape.head_dim)).transpose(1, 2)
            keys = pair_up(whole_keys, shape.rotary_dim).flatten(0, 1).contiguous()
        else:
            keys = scratch.take("keys", shape.num_kv_heads, latent_k.shape[1], shape.head_dim)
            for latent, k_up, out in zip(latent_k, self.k_up, keys.split(shape.group_size_k), strict=True):
                torch.bmm(latent.expand(shape.group_size_k, -1, -1), k_up, out=out)
        if self.k_bias is not None:
            keys.add_(self.k_bias)
        return keys if self.k_norm is None else self._normalised(keys)

    def _normalised(self, keys: torch.Tensor) -> torch.Tensor:
        """RMSNorm of every head of ``keys [num_kv_heads, tokens, head_dim]``, in place."""
        mean_square = torch.linalg.vector_norm(keys, dim=-1, keepdim=True).square_().div_(keys.shape[-1])
        return keys.mul_(mean_square.add_(self.k_norm_eps).rsqrt_()).mul_(self.k_norm)

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Complex ``[tokens, head_dim / 2]``, rotations to ``positions [tokens]``; valid until the next call."""
        known = positions.clamp(max=len(self.rotations) - 1)  # unused slots may lie past the table
        angles = scratch.take("angles", len(known), self.rotations.shape[1], dtype=torch.complex64)
        return torch.index_select(self.rotations, 0, known, out=angles)

    def turned_back(self, paired: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Rotated queries ``paired [owners, num_kv_heads, queries_per_kv, run, head_dim]`` (``pair_up``) as if they
        were ``distances [owners, run]`` tokens earlier.
        """
        lengths = self.rotations[0].real  # that of a table with a factor (yarn's) is not 1
        back = (self.angles(distances.flatten()).conj() / lengths).view(*distances.shape, -1)
        pairs = torch.view_as_complex(paired.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * back[:, None, None]).flatten(-2)

    def rotate(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotates ``keys [num_kv_heads, tokens, head_dim]`` in place to ``positions [tokens]``."""
        torch.view_as_complex(keys.unflatten(-1, (-1, 2))).mul_(self.angles(positions))
        return keys
