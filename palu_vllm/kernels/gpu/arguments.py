"""The arguments that the kernels have in common, by their names in the kernels."""

import math
from functools import cache as cached
from typing import Any

import torch
import triton.language as tl
from triton.runtime.jit import KernelInterface

from palu_vllm.format.latent_format import LatentFormat
from palu_vllm.format.packing import pieces
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.gpu.tiling import Tiling
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch


def log2_scale(shape: LayerShape) -> float:
    """Of scores in units of log 2."""
    return shape.scale / math.log(2)


def operands(query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, rebuild: KeyRebuild) -> dict[str, Any]:
    """Pointers and their strides, in elements."""
    return step_operands(query, cache, batch) | cache_strides(cache) | rebuild_operands(rebuild)


def step_operands(query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch) -> dict[str, Any]:
    """Those that differ from step to step."""
    return {
        "query_ptr": query,
        "cache_ptr": cache,
        "block_table_ptr": batch.block_table,
        "seq_lens_ptr": batch.seq_lens,
        "query_start_loc_ptr": batch.query_start_loc,
        "stride_query_token": query.stride(0),
        "stride_query_head": query.stride(1),
        "stride_block_table_request": batch.block_table.stride(0),
    }


def cache_strides(cache: torch.Tensor) -> dict[str, int]:
    block, group, slot, _ = cache.stride()
    return {"stride_cache_block": block, "stride_cache_group": group, "stride_cache_slot": slot}


def rebuild_operands(rebuild: KeyRebuild) -> dict[str, Any]:
    """Those of keys."""
    k_up_strides = (0, 0) if rebuild.k_up is None else rebuild.k_up.stride()
    return {
        "k_up_ptr": rebuild.k_up,
        "k_bias_ptr": rebuild.k_bias,
        "k_norm_ptr": rebuild.k_norm,
        "k_norm_eps": rebuild.k_norm_eps,
        "cos_sin_ptr": rebuild.cos_sin,
        "stride_k_up_group": k_up_strides[0],
        "stride_k_up_rank": k_up_strides[1],
    }


def layer_constants(shape: LayerShape, block_size: int) -> dict[str, Any]:
    """Of a layer and its cache."""
    return {
        "GROUP_SIZE": shape.group_size,
        "GROUP_SIZE_K": shape.group_size_k,
        "GROUP_SIZE_V": shape.group_size_v,
        "QUERIES_PER_KV": shape.queries_per_kv,
        "HEAD_DIM": shape.head_dim,
        "ROTARY_DIM": shape.rotary_width,
        "RANK_K": shape.rank_k,
        "RANK_V": shape.rank_v,
        "FORMAT_K": None if shape.slot is None else packed_format(shape.slot.key),
        "FORMAT_V": None if shape.slot is None else packed_format(shape.slot.value),
        "KEY_WIDTH": shape.key_width,
        "VALUE_WIDTH": shape.value_width,
        "VALUE_START": shape.value_start,
        "BLOCK_SIZE": block_size,
        "SLIDING_WINDOW": shape.sliding_window,
        "NUM_SINKS": shape.num_sinks,
        "SHIFT_SINKS": shape.shift_sinks,
    }


def constants(shape: LayerShape, block_size: int, tiling: Tiling) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return layer_constants(shape, block_size) | {
        "TILE_TOKENS": tiling.tokens,
        "TILE_RANK": tiling.rank,
        "TILE_HALF": tiling.pairs,
        "TILE_ROWS": tiling.rows,
        "TILE_VALUES": tiling.values,
        "VALUE_TILES": tiling.value_tiles,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


def taken_by(kernel: KernelInterface, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of ``arguments`` that ``kernel`` has a parameter for, and how it is compiled."""
    names = {*kernel.arg_names, "num_warps", "num_stages", "enable_fp_fusion"}
    return {name: value for name, value in arguments.items() if name in names}


@cached
def packed_format(form: LatentFormat) -> tuple:
    """A part as a constant of the kernels, without names; ``load_packed`` says what is where.

    The clip ratio is no part of it, so that layers with other ratios are served by the same kernels. Of what Triton
    understands from 3.6 on: tuples of tuples, no deeper, and no strings, which it takes for attributes.
    """
    tiers = tuple(
        (piece.numbers.start, piece.tier.size, piece.tiers, piece.tier.bits, piece.header.start, piece.payload.start)
        for piece in pieces(form)
    )
    header_used = sum(form.tier_header_bytes(tier) for tier in form.tiers)
    used = form.header_bytes + sum(form.payload_bytes(tier) for tier in form.tiers)
    return (header_used, used, form.bytes, getattr(tl, form.dtype), form.symmetric), *tiers
