"""Attention of every palu model: three projections to query and latents, latent attention, one projection back."""

from dataclasses import replace

import torch
from torch import nn
from transformers import PretrainedConfig
from vllm.config import CacheConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models.utils import extract_layer_index

from palu_vllm.attention_backend.layer import LatentAttention
from palu_vllm.attention_backend.shared_specs import share_specs
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.interface import KeyRebuild
from palu_vllm.startup.served import served_config


class PaluAttention(nn.Module):
    """Owns the tensors of ``checkpoint.layer_tensors`` under the same names, split by groups over devices.

    Takes the arguments that vLLM's LlamaDecoderLayer gives to its attention. Ranks, groups and biases come from
    ``ServedConfig``.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        max_position_embeddings: int,
        quant_config: QuantizationConfig | None,
        bias: bool,
        bias_o_proj: bool,
        cache_config: CacheConfig | None,
        prefix: str,
        attn_type: str,
    ) -> None:
        super().__init__()
        layer = extract_layer_index(prefix)
        served = served_config(get_current_vllm_config())
        palu, whole = served.palu, served.layer(layer)
        self.value_path, self.is_shared = whole.value_path, whole.shared
        self._create_projections(whole, hidden_size, palu.attention_bias, quant_config, prefix)
        self.q_norm = RMSNorm(whole.head_dim, eps=config.rms_norm_eps) if palu.qk_norm else None
        self.k_norm = RMSNorm(whole.head_dim, eps=config.rms_norm_eps) if palu.qk_norm and not whole.shared else None
        rope = {"max_position": max_position_embeddings, "rope_parameters": config.rope_parameters}
        self.rotary_emb = get_rope(whole.head_dim, **rope)
        # keys are rotated in float32 whatever the dtype of the model; vLLM shares the table between layers
        table = get_rope(whole.head_dim, **rope, dtype=torch.float32).cos_sin_cache
        devices, streaming = get_tensor_model_parallel_world_size(), served.streaming
        sinks = streaming.operands if streaming else {}
        source = _source_attention(prefix, layer, palu.source_layer(layer)) if whole.shared else None
        self.attn = LatentAttention(
            shape=replace(whole.on_one_of(devices), slot=served.slot(layer), **sinks),
            rebuild=source.impl.rebuild if source else self._rebuild(table),
            cache_config=cache_config,
            sliding_window=streaming.window if streaming else _sliding_window(config, layer),
            prefix=f"{prefix}.attn",
            v_up=source.impl.v_up if source else self.v_up,
            source=source.layer_name if source else None,
        )
        self.shape = self.attn.shape

    def _create_projections(
        self, whole: LayerShape, hidden_size: int, bias: bool, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        """Factors are never quantized, see ``quantized.py``; a shared layer has none."""
        widths = {"q_proj": whole.num_heads * whole.head_dim}
        if not whole.shared:
            widths |= {"k_down": whole.num_groups_k * whole.rank_k, "v_down": whole.num_groups_v * whole.rank_v}
        for name, width in widths.items():
            is_query = name == "q_proj"
            linear = ColumnParallelLinear(
                hidden_size,
                width,
                bias=bias and is_query,
                quant_config=quant_config if is_query else None,
                prefix=f"{prefix}.{name}",
                return_bias=False,
            )
            self.add_module(name, linear)
        self.o_proj = RowParallelLinear(
            whole.output_width,
            hidden_size,
            bias=bias,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
            return_bias=False,
        )
        own, factored = not whole.shared, whole.value_path == "factored"
        self.k_up = _parameter(whole.num_groups_k, whole.rank_k, whole.full_rank_k) if own and whole.has_k_up else None
        self.v_up = _parameter(whole.num_groups_v, whole.rank_v, whole.full_rank_v) if own and factored else None
        self.k_bias = _parameter(whole.num_kv_heads * whole.head_dim) if own and bias else None

    def _rebuild(self, table: torch.Tensor) -> KeyRebuild:
        rebuild = KeyRebuild(self.k_up, self.k_bias, table)
        if self.k_norm is None:
            return rebuild
        norm = self.k_norm.weight.requires_grad_(False)  # the kernels work in place
        return replace(rebuild, k_norm=norm, k_norm_eps=self.k_norm.variance_epsilon)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """``positions [tokens]`` and ``hidden_states [tokens, hidden]`` to ``[tokens, hidden]``."""
        query = self.q_proj(hidden_states)
        if self.q_norm is not None:
            query = self.q_norm(query.unflatten(-1, (-1, self.shape.head_dim))).flatten(1)
        query, _ = self.rotary_emb(positions, query, None)
        latents = () if self.is_shared else (self.k_down(hidden_states), self.v_down(hidden_states))
        values = self.attn(query, *latents)
        if self.value_path == "uncompressed":
            values = self._own_values(values)
        return self.o_proj(values.flatten(1))

    def _own_values(self, latents: torch.Tensor) -> torch.Tensor:
        """Of ``[tokens, num_heads, rank_v]``, the values of all heads of a group, each head takes its own."""
        groups, group_size = self.shape.num_groups_v, self.shape.group_size_v
        # [tokens, group, KV head in the group, query head of it, rank_v]
        latents = latents.unflatten(1, (groups, group_size, self.shape.queries_per_kv))
        own = latents.unflatten(-1, (group_size, self.shape.head_dim)).diagonal(dim1=2, dim2=4)
        return own.movedim(-1, 2)


def _parameter(*size: int) -> nn.Parameter:
    """This device's part of a tensor whose first dimension is split by groups."""
    first, *rest = size
    parameter = nn.Parameter(torch.empty(first // get_tensor_model_parallel_world_size(), *rest), requires_grad=False)
    parameter.weight_loader = sharded_weight_loader(0)
    return parameter


def _source_attention(prefix: str, layer: int, source: int) -> LatentAttention:
    """The attention of layer ``source``, built before, for the layer at ``prefix``."""
    stack = prefix.rsplit(f".{layer}.", 1)
    name = f".{source}.".join(stack) + ".attn"
    share_specs()
    return get_current_vllm_config().compilation_config.static_forward_context[name]


def _sliding_window(config: PretrainedConfig, layer: int) -> int | None:
    """The window of one layer where layers differ; None leaves it to vLLM's setting for the whole model."""
    kinds = getattr(config, "layer_types", None)
    return config.sliding_window if kinds and kinds[layer] == "sliding_attention" else None
