"""Attention of one layer over cached latents, for every family. The mathematics is that of ``kernels.reference``."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from palu_vllm.format.packing import pack, unpack
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.interface import KeyRebuild
from palu_vllm.kernels.reference import rebuild_keys, rotate

# implementations that take values of another width than the keys and the mask that transformers builds
IMPLEMENTATIONS = {"eager": eager_attention_forward, "sdpa": sdpa_attention_forward}


class Context(NamedTuple):
    """What a layer attends to in one forward pass, and where its queries stand in it."""

    keys: torch.Tensor  # [batch, num_kv_heads, tokens, head_dim], rotated
    values: torch.Tensor  # [batch, num_kv_heads, tokens, what a head averages]
    v_up: torch.Tensor | None
    cos_sin: torch.Tensor  # float32 [tokens, head_dim]
    query_rows: torch.Tensor  # int64 [length]


class PaluAttention(nn.Module):
    """Stands in for a decoder layer's ``self_attn``; parameters are those of ``checkpoint.layer_tensors``.

    With a ``source_layer`` before it, it attends to what that one has put into ``contexts`` in the same forward pass.

    Keys are rebuilt from the latents and rotated by their row among those that the cache returned, and so is the
    query: rotary scores depend on distances only, so rows shifted by left padding or cut off by a sliding window
    are exact. The decoder refuses ``position_ids`` that do not count every cached token.
    """

    is_causal = True

    def __init__(
        self,
        config: PreTrainedConfig,
        layer_idx: int,
        source_layer: int,
        shape: LayerShape,
        attention_bias: bool,
        rotary_emb: nn.Module,
    ) -> None:
        super().__init__()
        self.config, self.layer_idx, self.shape = config, layer_idx, shape
        self.source_layer = source_layer
        self.num_key_value_groups = self.shape.queries_per_kv  # read by transformers' attention functions
        self.rotary_emb = rotary_emb
        hidden = config.hidden_size
        self.q_proj = nn.Linear(hidden, shape.num_heads * shape.head_dim, bias=attention_bias)
        self.o_proj = nn.Linear(shape.output_width, hidden, bias=attention_bias)
        self.q_norm = LlamaRMSNorm(shape.head_dim, config.rms_norm_eps) if shape.qk_norm else None
        self._create_latents(hidden, attention_bias)

    def _create_latents(self, hidden: int, attention_bias: bool) -> None:
        """What latents are made with and read with; a shared layer has none of it."""
        shape, own = self.shape, not self.shape.shared
        groups_k, groups_v = shape.num_groups_k, shape.num_groups_v
        for name, width in (("k_down", groups_k * shape.rank_k), ("v_down", groups_v * shape.rank_v)):
            self.add_module(name, nn.Linear(hidden, width, bias=False) if own else None)
        factored = shape.value_path == "factored"
        self.k_up = _parameter(own and shape.has_k_up, groups_k, shape.rank_k, shape.full_rank_k)
        self.v_up = _parameter(own and factored, groups_v, shape.rank_v, shape.full_rank_v)
        self.k_bias = _parameter(own and attention_bias, shape.num_kv_heads * shape.head_dim)
        self.k_norm = LlamaRMSNorm(shape.head_dim, self.config.rms_norm_eps) if own and shape.qk_norm else None

    def init_weights(self, std: float) -> None:
        """Random values for the parameters that are not part of a linear layer."""
        for factor in (self.k_up, self.v_up):
            if factor is not None:
                init.normal_(factor, mean=0.0, std=std)
        if self.k_bias is not None:
            init.zeros_(self.k_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        contexts: dict[int, Context] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``hidden_states [batch, length, hidden]`` to the same shape, and the probabilities where they exist.

        ``attention_mask`` is what transformers builds for eager or sdpa attention; ``contexts`` are those of the layers
        before, by their number, None where no layer shares. The cache receives
        ``[batch, num_groups_k, length, rank_k]`` and ``[batch, num_groups_v, length, rank_v]``, or the bytes they are
        packed into. Raises ValueError for other attention implementations.
        """
        attend = IMPLEMENTATIONS.get(self.config._attn_implementation)
        if attend is None:
            expected = " or ".join(IMPLEMENTATIONS)
            raise ValueError(f"got attn_implementation {self.config._attn_implementation!r}, expected {expected}.")
        batch, length, _ = hidden_states.shape
        contexts = {} if contexts is None else contexts
        if not self.shape.shared:
            contexts[self.layer_idx] = self._context(hidden_states, past_key_values)
        context = contexts[self.source_layer]
        query = self.q_proj(hidden_states).view(batch * length, -1, self.shape.head_dim)
        if self.q_norm is not None:
            query = self.q_norm(query)
        query = rotate(query, context.cos_sin, context.query_rows.repeat(batch))
        query = query.view(batch, length, -1, self.shape.head_dim).transpose(1, 2).to(hidden_states.dtype)
        out, weights = attend(
            self,
            query,
            context.keys.to(query.dtype),
            context.values,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.shape.scale,
            **kwargs,
        )
        return self.o_proj(self._heads(out, context.v_up).reshape(batch, length, -1)), weights

    def _context(self, hidden_states: torch.Tensor, past_key_values: Cache | None) -> Context:
        """Stores the latents of ``hidden_states`` and reads those of all tokens."""
        length = hidden_states.shape[1]
        first_query, first_key = 0, 0
        if past_key_values is not None:
            first_query = past_key_values.get_query_offset(self.layer_idx)
            _, first_key = past_key_values.get_mask_sizes(length, self.layer_idx)
        query_rows = torch.arange(length, device=hidden_states.device) + (first_query - first_key)
        latent_k, latent_v = self._stored(hidden_states)
        if past_key_values is not None:
            latent_k, latent_v = past_key_values.update(latent_k, latent_v, self.layer_idx)
        latent_k, latent_v = self._read(latent_k, latent_v, hidden_states.dtype)
        cos_sin = self._cos_sin(latent_k)
        return Context(self._keys(latent_k, cos_sin), self._values(latent_v), self.v_up, cos_sin, query_rows)

    def _stored(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the cache takes: ``[batch, groups, length, rank]``, or uint8 bytes where latents are packed."""
        latent_k = _by_group(self.k_down(hidden_states), self.shape.num_groups_k)
        latent_v = _by_group(self.v_down(hidden_states), self.shape.num_groups_v)
        if self.shape.slot is None:
            return latent_k, latent_v
        return pack(latent_k, self.shape.slot.key), pack(latent_v, self.shape.slot.value)

    def _read(
        self, stored_k: torch.Tensor, stored_v: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents ``[batch, groups, tokens, rank]`` of what the cache returned."""
        if self.shape.slot is None:
            return stored_k, stored_v
        return unpack(stored_k, self.shape.slot.key).to(dtype), unpack(stored_v, self.shape.slot.value).to(dtype)

    def _cos_sin(self, latent_k: torch.Tensor) -> torch.Tensor:
        """The rotary table of as many positions as the cache returned: float32 ``[tokens, head_dim]``."""
        positions = torch.arange(latent_k.shape[2], device=latent_k.device)
        anchor = torch.empty(0, device=latent_k.device)  # transformers takes device and dtype from it
        half = self.shape.head_dim // 2
        return torch.cat([table[0, :, :half] for table in self.rotary_emb(anchor, positions[None])], dim=-1)

    def _keys(self, latent_k: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
        """``[batch, num_groups_k, tokens, rank_k]`` to float32 ``[batch, num_kv_heads, tokens, head_dim]``."""
        batch, _, tokens, _ = latent_k.shape
        rows = torch.arange(tokens, device=latent_k.device).repeat(batch)
        rebuild = KeyRebuild(self.k_up, self.k_bias, cos_sin)
        if self.k_norm is not None:
            rebuild = replace(rebuild, k_norm=self.k_norm.weight, k_norm_eps=self.k_norm.variance_epsilon)
        keys = rebuild_keys(latent_k.transpose(1, 2).flatten(0, 1), rebuild, self.shape, rows)
        return keys.unflatten(0, (batch, tokens)).transpose(1, 2)

    def _values(self, latent_v: torch.Tensor) -> torch.Tensor:
        """``[batch, num_groups_v, tokens, rank_v]`` to ``[batch, num_kv_heads, tokens, what a head averages]``."""
        if self.shape.value_path == "uncompressed":
            heads = latent_v.unflatten(-1, (self.shape.group_size_v, self.shape.head_dim))
            return heads.transpose(2, 3).flatten(1, 2)
        return latent_v.repeat_interleave(self.shape.group_size_v, dim=1)

    def _heads(self, out: torch.Tensor, v_up: torch.Tensor | None) -> torch.Tensor:
        """``[batch, length, num_heads, averaged]``, multiplied by ``v_up`` of its KV head where there is one."""
        if v_up is None:
            return out
        v_up = v_up.unflatten(-1, (self.shape.group_size_v, self.shape.head_dim)).transpose(1, 2).flatten(0, 1)
        by_kv_head = out.unflatten(2, (self.shape.num_kv_heads, self.shape.queries_per_kv))
        return torch.einsum("bthjr,hrd->bthjd", by_kv_head, v_up)


def _by_group(latent: torch.Tensor, groups: int) -> torch.Tensor:
    """``[batch, length, groups * rank]`` to ``[batch, groups, length, rank]``."""
    return latent.unflatten(-1, (groups, -1)).transpose(1, 2)


def _parameter(present: bool, *size: int) -> nn.Parameter | None:
    return nn.Parameter(torch.empty(size)) if present else None
