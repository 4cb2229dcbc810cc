"""The attention layer of a palu model: queries of ``head_dim`` against latents of another width."""

import torch
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.kv_cache_interface import KVCacheSpec, replace_as

from palu_vllm.attention_backend.backend import PaluBackend
from palu_vllm.attention_backend.sink_window import SinkWindowSpec
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.interface import KeyRebuild


class LatentAttention(Attention):
    """vLLM's layer with groups in the place of KV heads, the widths of their key and value latents in the place of head
    sizes: ``rank_k`` and ``rank_v``, or bytes where latents are packed, times the latents of a slot.

    With these numbers its KV cache spec, full or sliding, is the right one, and ranks may differ between layers. With a
    ``source`` it has none: it reads what that earlier layer stored, by vLLM's sharing of KV caches between layers.
    Raises ValueError on platforms where vLLM does not hide attention from torch.compile.
    """

    def __init__(
        self,
        shape: LayerShape,
        rebuild: KeyRebuild,
        cache_config: CacheConfig | None,
        sliding_window: int | None,
        prefix: str,
        v_up: torch.Tensor | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(
            num_heads=shape.num_heads,
            head_size=shape.value_start,
            scale=shape.scale,
            num_kv_heads=shape.num_groups,
            cache_config=cache_config,
            per_layer_sliding_window=sliding_window,
            prefix=prefix,
            kv_sharing_target_layer_name=source,
            attn_backend=PaluBackend,
            head_size_v=shape.slot_width - shape.value_start,
            shape=shape,
            rebuild=rebuild,
            v_up=v_up,
        )
        if self.use_direct_call:
            raise ValueError("PALU runs on CUDA, ROCm and CPU platforms of vLLM only.")
        self.shape = self.impl.shape
        self.out_width = shape.rank_v if v_up is None else shape.head_dim
        if shape.slot is not None:
            self.kv_cache_torch_dtype = torch.uint8  # read by vLLM's get_kv_cache_spec only

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """vLLM's, full or sliding; where a request keeps its first tokens beside a window, with these."""
        spec = super().get_kv_cache_spec(vllm_config)
        return replace_as(spec, SinkWindowSpec, num_sinks=self.shape.num_sinks) if self.shape.num_sinks else spec

    def forward(
        self, query: torch.Tensor, latent_k: torch.Tensor | None = None, latent_v: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Stores the latents, None where there is a ``source``, and attends to those of the whole context.

        Takes ``query [tokens, num_heads * head_dim]``, rotated, ``latent_k [tokens, num_groups_k * rank_k]`` and
        ``latent_v [tokens, num_groups_v * rank_v]``; returns ``[tokens, num_heads, rank_v]``, with ``v_up``
        ``[..., head_dim]``. The parent's forward would cut query and key into heads of one width.
        """
        shape = self.shape
        query = query.view(-1, shape.num_heads, shape.head_dim)
        output = query.new_empty(query.shape[0], shape.num_heads, self.out_width)
        name = _encode_layer_name(self.layer_name)
        if latent_k is None or latent_v is None:
            latent_k = latent_v = query.new_empty(0)  # vLLM's operation takes tensors; attention reads the cache
            written = None
        else:
            latent_k = latent_k.view(-1, shape.num_groups, shape.numbers_k)
            latent_v = latent_v.view(-1, shape.num_groups, shape.numbers_v)
            written = torch.ops.vllm.unified_kv_cache_update(latent_k, latent_v, name)
        torch.ops.vllm.unified_attention_with_output(
            query, latent_k, latent_v, output, name, kv_cache_dummy_dep=written
        )
        return output
