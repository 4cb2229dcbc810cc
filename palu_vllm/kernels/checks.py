"""Refuses operands whose shapes do not fit each other. Reads shapes, strides and dtypes only, never values."""

import torch

from palu_vllm.format.latent_format import ALIGNMENT, SlotFormat
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch


def expect_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"got {name} {list(tensor.shape)}, expected {list(expected)}")


def expect_dense_rows(**tensors: torch.Tensor | None) -> None:
    """Raises ValueError for a tensor whose last stride is not 1, as the kernels assume; None is skipped."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"got {name} with strides {tensor.stride()}, expected a last stride of 1")


def check_layer(shape: LayerShape, rebuild: KeyRebuild, v_up: torch.Tensor | None = None) -> None:
    """Raises ValueError where the sizes of a layer or its factors contradict each other."""
    check_sizes(shape)
    if v_up is not None:
        expect_shape("v_up", v_up, (shape.num_groups_v, shape.rank_v, shape.full_rank_v))
        expect_dense_rows(v_up=v_up)
    if rebuild.k_up is not None:
        expect_shape("k_up", rebuild.k_up, (shape.num_groups_k, shape.rank_k, shape.full_rank_k))
    elif shape.rank_k != shape.full_rank_k:
        raise ValueError(f"got no k_up and rank_k {shape.rank_k}, expected rank_k {shape.full_rank_k}")
    if rebuild.k_bias is not None:
        expect_shape("k_bias", rebuild.k_bias, (shape.num_kv_heads * shape.head_dim,))
    if rebuild.k_norm is not None:
        expect_shape("k_norm", rebuild.k_norm, (shape.head_dim,))
        if rebuild.k_norm_eps <= 0:
            raise ValueError(f"got k_norm_eps {rebuild.k_norm_eps}, expected a positive number")
    expect_shape("cos_sin", rebuild.cos_sin, (rebuild.cos_sin.shape[0], shape.rotary_width))
    if not rebuild.cos_sin.is_contiguous():
        raise ValueError(f"got cos_sin with strides {rebuild.cos_sin.stride()}, expected it contiguous")
    expect_dense_rows(k_up=rebuild.k_up, k_bias=rebuild.k_bias, k_norm=rebuild.k_norm)
    if rebuild.cos_sin.dtype != torch.float32:
        raise ValueError(f"got cos_sin {rebuild.cos_sin.dtype}, expected torch.float32")


def check_sizes(shape: LayerShape) -> None:
    """Raises ValueError where the sizes of a layer contradict each other."""
    if shape.num_heads % shape.num_kv_heads:
        raise ValueError(f"got {shape.num_heads} heads, expected a multiple of {shape.num_kv_heads} KV heads")
    if shape.num_kv_heads % shape.group_size:
        raise ValueError(f"got {shape.num_kv_heads} KV heads, expected a multiple of group size {shape.group_size}")
    if shape.group_size % min(shape.group_size_k, shape.group_size_v):
        found = f"{shape.group_size_k} of K and {shape.group_size_v} of V"
        raise ValueError(f"got group sizes {found}, expected one that divides the other")
    if shape.head_dim % 2:
        raise ValueError(f"got head_dim {shape.head_dim}, expected an even number")
    if shape.rotary_width % 2 or not 0 < shape.rotary_width <= shape.head_dim:
        raise ValueError(f"got rotary_dim {shape.rotary_dim}, expected an even number from 2 to {shape.head_dim}")
    if shape.sliding_window is not None and shape.sliding_window < 1:
        raise ValueError(f"got sliding_window {shape.sliding_window}, expected at least 1 or None")
    if shape.num_sinks < 0 or (shape.num_sinks and shape.sliding_window is None):
        raise ValueError(f"got num_sinks {shape.num_sinks}, expected 0 or, beside a sliding window, more")
    if shape.shift_sinks and not shape.num_sinks:
        raise ValueError("got shift_sinks and num_sinks 0, expected sinks to shift")
    if shape.slot is not None and (shape.slot.key.rank, shape.slot.value.rank) != (shape.rank_k, shape.rank_v):
        found = f"{shape.slot.key.rank} and {shape.slot.value.rank}"
        raise ValueError(f"got a slot format for ranks {found}, expected {shape.rank_k} and {shape.rank_v}")


def check_cache(cache: torch.Tensor, num_groups: int, width: int, packed: bool) -> None:
    """Raises ValueError unless ``cache`` is ``[num_blocks, num_groups, block_size, width]`` with last stride 1."""
    if packed != (cache.dtype == torch.uint8):
        raise ValueError(f"got cache {cache.dtype}, expected {'torch.uint8' if packed else 'a floating dtype'}")
    if cache.dim() != 4 or cache.shape[1] != num_groups or cache.shape[3] != width:
        raise ValueError(f"got cache {list(cache.shape)}, expected [num_blocks, {num_groups}, block_size, {width}]")
    expect_dense_rows(cache=cache)
    offsets = (cache.storage_offset(), *cache.stride()[:3])
    if packed and any(offset % ALIGNMENT for offset in offsets):
        raise ValueError(f"got a packed cache with offset and strides {offsets}, expected multiples of {ALIGNMENT}")


def check_store(
    latent_k: torch.Tensor,
    latent_v: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    slot: SlotFormat | None = None,
) -> None:
    """Raises ValueError unless the latents fill one slot of ``cache`` for each entry of ``slot_mapping``."""
    num_groups = cache.shape[1]
    for name, latent in (("latent_k", latent_k), ("latent_v", latent_v)):
        if latent.dim() != 3 or latent.shape[1] != num_groups or latent.shape[0] < slot_mapping.shape[0]:
            expected = f"at least {slot_mapping.shape[0]} tokens of {num_groups} groups"
            raise ValueError(f"got {name} {list(latent.shape)}, expected {expected}")
    expect_dense_rows(latent_k=latent_k, latent_v=latent_v)
    width = latent_k.shape[2] + latent_v.shape[2]
    if slot is not None:
        key, value = latents_of_slot(latent_k, latent_v, slot)
        width = key * slot.key.bytes + value * slot.value.bytes
    check_cache(cache, num_groups, width, slot is not None)


def latents_of_slot(latent_k: torch.Tensor, latent_v: torch.Tensor, slot: SlotFormat) -> tuple[int, int]:
    """How many key and value latents ``[.., latents * rank]`` have. Raises ValueError where that is no whole number."""
    for name, latent, form in (("latent_k", latent_k, slot.key), ("latent_v", latent_v, slot.value)):
        if latent.shape[-1] % form.rank:
            raise ValueError(f"got {name} {list(latent.shape)}, expected latents of {form.rank} numbers")
    return latent_k.shape[-1] // slot.key.rank, latent_v.shape[-1] // slot.value.rank


def check_attend(
    query: torch.Tensor,
    cache: torch.Tensor,
    batch: PagedBatch,
    out: torch.Tensor,
    shape: LayerShape,
    v_up: torch.Tensor | None = None,
) -> None:
    """Raises ValueError where the operands of ``attend`` contradict ``shape`` or each other."""
    expect_shape("query", query, (query.shape[0], shape.num_heads, shape.head_dim))
    expect_shape("out", out, (out.shape[0], shape.num_heads, shape.rank_v if v_up is None else shape.head_dim))
    expect_dense_rows(query=query, out=out, block_table=batch.block_table)
    check_cache(cache, shape.num_groups, shape.slot_width, shape.slot is not None)
    requests = batch.seq_lens.shape[0]
    expect_shape("query_start_loc", batch.query_start_loc, (requests + 1,))
    expect_shape("block_table", batch.block_table, (requests, batch.block_table.shape[1]))
