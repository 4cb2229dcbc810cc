"""What every implementation of latent attention takes: the specification, the torch path and the Triton kernels.

An implementation is built once per layer from ``LayerShape``, ``KeyRebuild`` and, for the factored value path,
``v_up [num_groups_v, rank_v, group_size_v * head_dim]``, and then offers

``store(latent_k, latent_v, cache, slot_mapping)``
    ``latent_k [tokens, num_groups, numbers_k]``, ``latent_v [tokens, num_groups, numbers_v]`` and ``slot_mapping
    [tokens]`` int64, block * block_size + offset, negative for padding; writes ``cache``.
``attend(query, cache, batch, out)``
    ``query [tokens, num_heads, head_dim]``, rotated; ``out [tokens, num_heads, rank_v]``: for every query head
    the softmax-weighted sum of the latent values of its group. With ``v_up`` that sum times its KV head's columns of
    it, ``out [tokens, num_heads, head_dim]``. Rows past the last query are left alone.
``captures(queries)``
    Whether a batch of so many queries per request may be recorded as a CUDA graph, which reads nothing on the host and
    is launched again for other lengths and padded requests.

``cache`` is ``[num_blocks, num_groups, block_size, slot_width]`` with any strides whose last is 1; a slot holds the
key latent, then the value latent, as numbers or, uint8, packed as ``LayerShape.slot`` says. Latents are never
rotated. Where K and V are grouped differently, a slot is that of the larger group and holds ``key_latents`` key
latents, then ``value_latents`` value latents, in the order of their heads.
"""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class KeyRebuild:
    """Everything that turns a key latent into a rotated key.

    ``k[t, h] = RoPE_t(norm(c_k[t] @ k_up[g, :, h] + k_bias[h]))``, rotating the pairs (i, i + rotary_dim / 2) of the
    first ``rotary_dim`` numbers and none of the others. With ``k_norm``, ``norm(x) = k_norm * x / rms(x)`` where
    ``rms(x)^2 = mean(x^2) + k_norm_eps`` over the head. Latents are cached before all of it, those of whole keys too.
    """

    k_up: torch.Tensor | None  # [num_groups_k, rank_k, group_size_k * head_dim]; None: the latent is the key
    k_bias: torch.Tensor | None  # [num_kv_heads * head_dim]
    cos_sin: torch.Tensor  # [max_position, rotary_dim] float32: cosines of the rotary_dim / 2 pairs, then sines
    k_norm: torch.Tensor | None = None  # [head_dim], the same for every head; None: keys are not normalised
    k_norm_eps: float = 1e-6


@dataclass(frozen=True)
class PagedBatch:
    """Which queries attend to which blocks. Request r owns queries query_start_loc[r] : query_start_loc[r + 1]."""

    block_table: torch.Tensor  # [requests, max_blocks] int32
    seq_lens: torch.Tensor  # [requests] int32: cached tokens, the request's queries included
    query_start_loc: torch.Tensor  # [requests + 1] int32
    max_query_len: int
    max_seq_len: int  # at least the longest; an upper bound is allowed
    total_seq_len: int | None = None  # at least the sum of seq_lens; None where it is not known on the host
    parts: "BatchParts | None" = None  # where requests of few queries come first, and the host knows how many
    shared: dict[Any, Any] = field(default_factory=dict, init=False, compare=False)  # what one layer made for others


@dataclass(frozen=True)
class BatchParts:
    """A batch in two: its leading requests of few queries, and the others, which have many; None where there are none.
    The first has ``tokens`` queries.
    """

    tokens: int
    few: PagedBatch | None
    many: PagedBatch | None
