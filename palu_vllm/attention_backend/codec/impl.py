"""vLLM calls this for one layer of a model with a codec: it stores codes, then attends to what the cache holds."""

import torch
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import AttentionImpl, AttentionType
from vllm.v1.kv_cache_interface import is_quantized_kv_cache

from palu_vllm.attention_backend.codec.drift import stored_drift
from palu_vllm.attention_backend.codec.metadata import CodecMetadata
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.choose import codec_attention
from palu_vllm.kernels.codec.interface import CodecSettings


class CodecImpl(AttentionImpl[CodecMetadata]):
    """Attention of one layer by its ``codec``, that of this device's KV heads.

    Raises ValueError, one sentence, for attention that codecs do not compute.
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
        codec: LayerCodec,
        max_seq_len: int | None = None,
        sinks: torch.Tensor | None = None,
        **others: object,
    ) -> None:
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale, self.kv_cache_dtype = scale, kv_cache_dtype
        self.codec, self.sinks = codec, sinks
        self.sliding_window, self.soft_cap = sliding_window, logits_soft_cap or 0.0
        self.device = torch.get_default_device()  # vLLM builds layers within that of the model
        self.max_seq_len = max_seq_len
        unsupported = {
            "ALiBi": alibi_slopes is not None,
            f"the type {attn_type}": attn_type != AttentionType.DECODER,
            f"a cache of {kv_cache_dtype}": is_quantized_kv_cache(kv_cache_dtype),
        }
        for feature, asked in (unsupported | dict.fromkeys(others, True)).items():
            if asked:
                raise ValueError(f"a KV codec does not serve attention with {feature}; serve the model without it.")

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Builds the attention where the weights of the layer are, its sinks loaded."""
        self.codec = self.codec.to(self.device)
        settings = CodecSettings(
            self.num_heads, self.scale, self.sliding_window, self.soft_cap, self.sinks, self.max_seq_len
        )
        self.attention = codec_attention(self.device.type)(self.codec, settings)

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Stores ``key [tokens, kv_heads, head_dim]``, after norm and RoPE, and ``value [tokens, kv_heads, dim]``."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures memory
            return
        own = (metadata[0] if isinstance(metadata, list) else metadata)[layer.layer_name]
        self.attention.store(key, value, own.positions, kv_cache, slot_mapping[: len(own.positions)])
        if own.sample is not None:
            rows = own.sample.rows
            of_tokens = key[rows], value[rows], own.positions[rows], kv_cache, slot_mapping[rows]
            own.sample.found[layer.layer_name] = stored_drift(self.codec, *of_tokens)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CodecMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Fills ``output [tokens, num_heads, value_dim]`` for ``query [tokens, num_heads, head_dim]``, after RoPE."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("PALU does not quantize its output.")
        if attn_metadata is None:  # vLLM measures memory before there is a cache
            self.attention.measure(query, output)
            return output
        rows = slice(attn_metadata.num_actual_tokens)
        self.attention.attend(query[rows], kv_cache, attn_metadata.batch, output[rows])
        return output
