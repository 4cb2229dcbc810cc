"""vLLM calls this for one layer: it writes latents into the cache, then attends to what the cache holds."""

from dataclasses import replace

import torch
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from palu_vllm.attention_backend.metadata import PaluMetadata
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.choose import implementation, kernel_path
from palu_vllm.kernels.interface import KeyRebuild


class PaluImpl(AttentionImpl[PaluMetadata]):
    """Everything that differs between layers (ranks, factors, window) lives on the instance.

    ``head_size`` and ``num_kv_heads`` are vLLM's names for the width of the key latents of a group and the number of
    groups. A layer that shares its cache is told by ``LatentAttention`` not to store; it attends like any other.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        *,
        shape: LayerShape,
        rebuild: KeyRebuild,
        v_up: torch.Tensor | None = None,
    ) -> None:
        unsupported = {
            "ALiBi": alibi_slopes,
            "a soft cap of the logits": logits_soft_cap,
            f"{AttentionType(attn_type).value} attention": attn_type != AttentionType.DECODER,
        }
        for feature, value in unsupported.items():
            if value:
                raise ValueError(f"PALU does not support {feature}.")
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale, self.kv_cache_dtype = scale, kv_cache_dtype
        self.shape = replace(shape, sliding_window=sliding_window)
        self.rebuild, self.v_up = rebuild, v_up

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Builds the implementation, which may derive what it needs from the loaded factors."""
        path = kernel_path(self.rebuild.cos_sin.device.type)
        self.attention = implementation(path)(self.shape, self.rebuild, v_up=self.v_up)

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Stores ``key [tokens, num_groups, numbers_k]`` and ``value [tokens, num_groups, numbers_v]``, all latents."""
        self.attention.store(key, value, kv_cache, slot_mapping)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: PaluMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Fills ``output`` for ``query [tokens, num_heads, head_dim]``, rotated; ``[tokens, num_heads, rank_v]``, with
        ``v_up`` ``[..., head_dim]``.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("PALU does not quantize its output.")
        if attn_metadata is None:  # vLLM measures memory before there is a cache
            return output.zero_()
        rows = slice(attn_metadata.num_actual_tokens)
        self.attention.attend(query[rows], kv_cache, attn_metadata.batch, output[rows])
        return output
