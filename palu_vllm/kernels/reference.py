"""What the kernels must compute, in plain float32 torch: test oracle and benchmark baseline, not a fast path.

Accepts a cache of any floating dtype; every number is upcast before it is used. The notation is the paper's
(Palu, ICLR 2025): latents ``h = x A``, keys rebuilt as ``h B`` and rotated inside the attention (section 3.2),
values never rebuilt because ``B_v`` is multiplied into the output projection (equation 3).
"""

import torch

from palu_vllm.format.latent_format import SlotFormat
from palu_vllm.format.packing import pack, unpack
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.checks import check_attend, check_layer, check_store
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch
from palu_vllm.kernels.value_up import apply_v_up


def rotate(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of the pairs (i, i + rotary_dim / 2); numbers from ``rotary_dim`` on stay as they are.

    Takes ``x [tokens, heads, head_dim]``, ``cos_sin [max_position, rotary_dim]`` (cosines, then sines) and
    ``positions [tokens]``; returns float32 of the shape of ``x``.
    """
    cos, sin = cos_sin.float()[positions].unsqueeze(1).chunk(2, dim=-1)
    turned, kept = x.float().tensor_split((cos_sin.shape[-1],), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, kept), dim=-1)


def normalise(keys: torch.Tensor, rebuild: KeyRebuild) -> torch.Tensor:
    """``k_norm * x / sqrt(mean(x^2) + k_norm_eps)`` (RMSNorm) of every head of ``keys [..., head_dim]``, float32; where
    there is no ``k_norm``, the keys as they are.
    """
    if rebuild.k_norm is None:
        return keys
    mean_square = keys.square().mean(dim=-1, keepdim=True)
    return rebuild.k_norm.float() * (keys * torch.rsqrt(mean_square + rebuild.k_norm_eps))


def rebuild_keys(
    latent_k: torch.Tensor, rebuild: KeyRebuild, shape: LayerShape, positions: torch.Tensor
) -> torch.Tensor:
    """``k[t, h] = RoPE_t(norm(c_k[t] @ k_up[g, :, h] + k_bias[h]))``.

    Takes ``latent_k [tokens, num_groups_k, rank_k]`` and ``positions [tokens]``; returns float32
    ``[tokens, num_kv_heads, head_dim]``.
    """
    keys = latent_k.float()
    if rebuild.k_up is not None:
        keys = torch.einsum("tgr,grd->tgd", keys, rebuild.k_up.float())
    keys = keys.reshape(-1, shape.num_kv_heads, shape.head_dim)
    if rebuild.k_bias is not None:
        keys = keys + rebuild.k_bias.float().view(shape.num_kv_heads, shape.head_dim)
    return rotate(normalise(keys, rebuild), rebuild.cos_sin, positions)


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
    tokens = torch.nonzero(slot_mapping >= 0).flatten()
    slots = slot_mapping[tokens]
    block_size = cache.shape[2]
    latents = [latent_k[tokens], latent_v[tokens]]
    if slot is not None:
        sides = zip(latents, (slot.key, slot.value), strict=True)
        latents = [pack(latent.unflatten(-1, (-1, form.rank)), form).flatten(-2) for latent, form in sides]
    cache[slots // block_size, :, slots % block_size] = torch.cat(latents, dim=-1).to(cache.dtype)


def gather_latents(
    cache: torch.Tensor, blocks: torch.Tensor, positions: torch.Tensor, shape: LayerShape
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of one request at ``positions [tokens]``, whose blocks are ``blocks [max_blocks]``.

    Returns ``[tokens, num_groups_k, rank_k]`` and ``[tokens, num_groups_v, rank_v]`` in the dtype of ``cache``, or
    float32 where they are packed.
    """
    block_size = cache.shape[2]
    slots = cache[blocks.long()[positions // block_size], :, positions % block_size]
    keys, values = slots.tensor_split((shape.value_start,), dim=-1)
    keys = keys.unflatten(-1, (shape.key_latents, shape.key_width)).flatten(1, 2)
    values = values.unflatten(-1, (shape.value_latents, shape.value_width)).flatten(1, 2)
    if shape.slot is None:
        return keys, values
    return unpack(keys, shape.slot.key), unpack(values, shape.slot.value)


def visible(
    query_positions: torch.Tensor, key_positions: torch.Tensor, sliding_window: int | None, num_sinks: int = 0
) -> torch.Tensor:
    """Which keys a query sees: itself and those before it, of them the first ``num_sinks`` and the last
    ``sliding_window``, itself among these. Bool ``[queries, keys]``.
    """
    distance = query_positions[:, None] - key_positions[None, :]
    mask = distance >= 0
    return mask if sliding_window is None else mask & ((distance < sliding_window) | (key_positions < num_sinks))


def seen_positions(first_query: int, seq_len: int, shape: LayerShape) -> torch.Tensor:
    """What any query from position ``first_query`` on sees of a request, ascending."""
    if shape.sliding_window is None:
        return torch.arange(seq_len)
    first = max(0, first_query - shape.sliding_window + 1)
    return torch.cat((torch.arange(min(shape.num_sinks, first)), torch.arange(first, seq_len)))


def met_at(query_position: int, positions: torch.Tensor, shape: LayerShape) -> torch.Tensor:
    """Where a query meets the keys of ``positions``: where they are, but for sinks that shift.

    Those stand right before the window, so that the distances of what a query sees are those within a cache of
    ``cached_tokens`` (StreamingLLM, arXiv 2309.17453, section 3.2).
    """
    if shape.cached_tokens is None or not shape.shift_sinks:
        return positions
    return positions + max(0, query_position + 1 - shape.cached_tokens) * (positions < shape.num_sinks)


def latent_attention(
    query: torch.Tensor, keys: torch.Tensor, latent_v: torch.Tensor, mask: torch.Tensor, shape: LayerShape
) -> torch.Tensor:
    """``z[j] = sum_t softmax_t(scale * q_j . k[t, h]) c_v[t]`` for one request.

    Takes ``query [queries, num_heads, head_dim]``, ``keys [tokens, num_kv_heads, head_dim]``,
    ``latent_v [tokens, num_groups_v, rank_v]``, ``mask [queries, tokens]``; returns float32
    ``[queries, num_heads, rank_v]``.
    """
    keys = keys.repeat_interleave(shape.queries_per_kv, dim=1)
    values = latent_v.float().repeat_interleave(shape.queries_per_kv * shape.group_size_v, dim=1)
    scores = shape.scale * torch.einsum("qhd,thd->hqt", query.float(), keys)
    probabilities = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqt,thr->qhr", probabilities, values)


def paged_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    batch: PagedBatch,
    out: torch.Tensor,
    shape: LayerShape,
    rebuild: KeyRebuild,
    v_up: torch.Tensor | None = None,
) -> None:
    """Attention of every query over the latents of its request; shapes as in ``operands``, ``out`` of any dtype.

    Raises ValueError for shapes that do not fit each other.
    """
    check_attend(query, cache, batch, out, shape, v_up)
    starts = batch.query_start_loc.tolist()
    for request, seq_len in enumerate(batch.seq_lens.tolist()):
        rows = slice(starts[request], starts[request + 1])
        query_len = rows.stop - rows.start
        if query_len == 0:
            continue
        query_positions = torch.arange(seq_len - query_len, seq_len, device=query.device)
        positions = seen_positions(seq_len - query_len, seq_len, shape).to(query.device)
        latent_k, latent_v = gather_latents(cache, batch.block_table[request], positions, shape)
        mask = visible(query_positions, positions, shape.sliding_window, shape.num_sinks)
        run = 1 if shape.shift_sinks else query_len  # queries that meet their keys at the same positions
        values = []
        for some, places, sees in zip(query[rows].split(run), query_positions.split(run), mask.split(run), strict=True):
            keys = rebuild_keys(latent_k, rebuild, shape, met_at(int(places[-1]), positions, shape))
            values.append(latent_attention(some, keys, latent_v, sees, shape))
        means = torch.cat(values)
        out[rows] = (means if v_up is None else apply_v_up(means, v_up, shape)).to(out.dtype)


class ReferenceAttention:
    """``store`` and ``attend`` of ``operands`` in float32 torch, on any device.

    Raises ValueError where ``shape``, ``rebuild`` and ``v_up`` contradict each other.
    """

    def __init__(self, shape: LayerShape, rebuild: KeyRebuild, v_up: torch.Tensor | None = None) -> None:
        check_layer(shape, rebuild, v_up)
        self.shape = shape
        self.rebuild = rebuild
        self.v_up = v_up

    def store(
        self, latent_k: torch.Tensor, latent_v: torch.Tensor, cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        store_latents(latent_k, latent_v, cache, slot_mapping, self.shape.slot)

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        paged_attention(query, cache, batch, out, self.shape, self.rebuild, self.v_up)
