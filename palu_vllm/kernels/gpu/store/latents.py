"""Writes new latents into their slots of the paged cache."""

from functools import cache as cached

import torch
import triton
import triton.language as tl

from palu_vllm.format.latent_format import SlotFormat
from palu_vllm.format.packing import clip_argument
from palu_vllm.kernels.checks import check_store, latents_of_slot
from palu_vllm.kernels.gpu.arguments import packed_format
from palu_vllm.kernels.gpu.bound import BoundKernel
from palu_vllm.kernels.gpu.store.packed import store_part


@triton.jit
def store_latents_kernel(
    latent_k_ptr,  # [tokens, num_groups, SIZE_K]: KEY_LATENTS latents
    latent_v_ptr,  # [tokens, num_groups, SIZE_V]: VALUE_LATENTS latents
    cache_ptr,  # [num_blocks, num_groups, BLOCK_SIZE, SIZE_K + SIZE_V], or bytes
    slot_mapping_ptr,  # [tokens] int64, negative for padding
    stride_latent_k_token,
    stride_latent_k_group,
    stride_latent_v_token,
    stride_latent_v_group,
    stride_cache_block,
    stride_cache_group,
    stride_cache_slot,
    clip_k,
    clip_v,
    BLOCK_SIZE: tl.constexpr,
    SIZE_K: tl.constexpr,
    SIZE_V: tl.constexpr,
    KEY_LATENTS: tl.constexpr,
    VALUE_LATENTS: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_V: tl.constexpr,
    FORMAT_K: tl.constexpr,
    FORMAT_V: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
    if slot < 0:
        return
    block_offset = slot // BLOCK_SIZE * stride_cache_block + slot % BLOCK_SIZE * stride_cache_slot
    slot_ptr = cache_ptr + block_offset + group * stride_cache_group
    latent_k_ptr += token * stride_latent_k_token + group * stride_latent_k_group
    latent_v_ptr += token * stride_latent_v_token + group * stride_latent_v_group
    if FORMAT_K is not None:
        for index in range(KEY_LATENTS):
            part_ptr = slot_ptr + index * FORMAT_K[0][2]
            store_part(part_ptr, latent_k_ptr + index * (SIZE_K // KEY_LATENTS), clip_k, FORMAT_K)
        for index in range(VALUE_LATENTS):
            part_ptr = slot_ptr + KEY_LATENTS * FORMAT_K[0][2] + index * FORMAT_V[0][2]
            store_part(part_ptr, latent_v_ptr + index * (SIZE_V // VALUE_LATENTS), clip_v, FORMAT_V)
    else:
        # [TILE_K]
        column = tl.arange(0, TILE_K)
        latent = tl.load(latent_k_ptr + column, mask=column < SIZE_K)
        tl.store(slot_ptr + column, latent.to(cache_ptr.dtype.element_ty), mask=column < SIZE_K)
        # [TILE_V]
        column = tl.arange(0, TILE_V)
        latent = tl.load(latent_v_ptr + column, mask=column < SIZE_V)
        tl.store(slot_ptr + SIZE_K + column, latent.to(cache_ptr.dtype.element_ty), mask=column < SIZE_V)


def store_latents(
    latent_k: torch.Tensor,
    latent_v: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    slot: SlotFormat | None = None,
) -> None:
    """Writes one slot of ``cache`` per entry of ``slot_mapping``, packed where ``slot`` says how; negative entries are
    padding.

    Shapes as in ``operands``; latents may have more rows than ``slot_mapping``, which are ignored.
    Raises ValueError for shapes that do not fit each other.
    """
    check_store(latent_k, latent_v, cache, slot_mapping, slot)
    tokens, num_groups, size_k, size_v = slot_mapping.shape[0], cache.shape[1], latent_k.shape[2], latent_v.shape[2]
    key_latents, value_latents = (1, 1) if slot is None else latents_of_slot(latent_k, latent_v, slot)
    if tokens == 0:
        return
    token_k, group_k, _ = latent_k.stride()
    token_v, group_v, _ = latent_v.stride()
    block, group, width, _ = cache.stride()
    bound_store((size_k, size_v), (key_latents, value_latents), slot, cache.shape[2], cache.device).launch(
        (tokens, num_groups, 1),
        {
            "latent_k_ptr": latent_k, "latent_v_ptr": latent_v, "cache_ptr": cache, "slot_mapping_ptr": slot_mapping,
            "stride_latent_k_token": token_k, "stride_latent_k_group": group_k,
            "stride_latent_v_token": token_v, "stride_latent_v_group": group_v,
            "stride_cache_block": block, "stride_cache_group": group, "stride_cache_slot": width,
        },
    )  # fmt: skip


@cached
def bound_store(
    sizes: tuple[int, int], latents: tuple[int, int], slot: SlotFormat | None, block_size: int, device: torch.device
) -> BoundKernel:
    """The kernel for such layers on ``device``: numbers and latents of K and V per group, blocks of so many tokens."""
    given = {
        "clip_k": 1.0 if slot is None else clip_argument(slot.key),
        "clip_v": 1.0 if slot is None else clip_argument(slot.value),
        "BLOCK_SIZE": block_size,
        "SIZE_K": sizes[0],
        "SIZE_V": sizes[1],
        "KEY_LATENTS": latents[0],
        "VALUE_LATENTS": latents[1],
        "TILE_K": triton.next_power_of_2(sizes[0]),
        "TILE_V": triton.next_power_of_2(sizes[1]),
        "FORMAT_K": None if slot is None else packed_format(slot.key),
        "FORMAT_V": None if slot is None else packed_format(slot.value),
        "num_warps": 4,
    }
    return BoundKernel(store_latents_kernel, given)
