"""What every implementation of latent attention takes: the specification, the torch path and the Triton kernels.

An implementation is built once per layer from ``AttentionShape``, ``KeyRebuild`` and, for the factored value path,
``v_up [num_groups_v, rank_v, group_size_v * head_dim]``, and then offers

``store(latent_k, latent_v, cache, slot_mapping)``
    ``latent_k [tokens, num_groups, numbers_k]``, ``latent_v [tokens, num_groups, numbers_v]`` and ``slot_mapping
    [tokens]`` int64, block * block_size + offset, negative for padding; writes ``cache``.
``attend(query, cache, batch, out)``
    ``query [tokens, num_heads, head_dim]``, rotated; ``out [tokens, num_heads, rank_v]``: for every query head
    the softmax-weighted sum of the latent values of its group. With ``v_up`` that sum times its KV head's columns of
    it, ``out [tokens, num_heads, head_dim]``. Rows past the last query are left alone.

``cache`` is ``[num_blocks, num_groups, block_size, slot_width]`` with any strides whose last is 1; a slot holds the
key latent, then the value latent, as numbers or, uint8, packed as ``AttentionShape.slot`` says. Latents are never
rotated. Where K and V are grouped differently, a slot is that of the larger group and holds ``key_latents`` key
latents, then ``value_latents`` value latents, in the order of their heads.
"""

from dataclasses import dataclass

import torch

from palu_vllm.format.latent_format import SlotFormat


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one layer on one device. A group is ``group_size`` adjacent KV heads, which share a slot of the cache:
    ``key_latents`` latents of ``rank_k`` numbers, each of equally many of them, and likewise ``value_latents`` of
    ``rank_v``. One of both counts is 1.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    group_size: int
    rank_k: int
    rank_v: int
    scale: float
    sliding_window: int | None = None  # a query sees itself and the window - 1 tokens before it
    num_sinks: int = 0  # with a window: tokens at the start of a request that every query behind them sees too
    shift_sinks: bool = False  # a query meets the sinks right before its window, else where they are
    slot: SlotFormat | None = None  # how latents are packed; None: the cache holds their numbers as they are
    rotary_dim: int | None = None  # how many numbers of a head are rotated, the first ones; None: all
    key_latents: int = 1
    value_latents: int = 1

    @property
    def cached_tokens(self) -> int | None:
        """Sinks and window: most that a query sees, itself included; None where there is no window."""
        return None if self.sliding_window is None else self.num_sinks + self.sliding_window

    @property
    def num_groups(self) -> int:
        return self.num_kv_heads // self.group_size

    @property
    def group_size_k(self) -> int:
        """KV heads that share a key latent."""
        return self.group_size // self.key_latents

    @property
    def group_size_v(self) -> int:
        """KV heads that share a value latent."""
        return self.group_size // self.value_latents

    @property
    def num_groups_k(self) -> int:
        return self.num_groups * self.key_latents

    @property
    def num_groups_v(self) -> int:
        return self.num_groups * self.value_latents

    @property
    def numbers_k(self) -> int:
        """Of all key latents of a slot."""
        return self.key_latents * self.rank_k

    @property
    def numbers_v(self) -> int:
        return self.value_latents * self.rank_v

    @property
    def key_width(self) -> int:
        """Elements of one key latent in the cache: bytes where latents are packed; so are the other widths."""
        return self.rank_k if self.slot is None else self.slot.key.bytes

    @property
    def value_width(self) -> int:
        return self.rank_v if self.slot is None else self.slot.value.bytes

    @property
    def value_start(self) -> int:
        """Where the value latents of a slot begin."""
        return self.key_latents * self.key_width

    @property
    def slot_width(self) -> int:
        return self.value_start + self.value_latents * self.value_width

    @property
    def rotary_width(self) -> int:
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads


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
