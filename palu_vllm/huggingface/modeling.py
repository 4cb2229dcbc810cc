"""transformers' own Llama, Mistral, Qwen2 and Qwen3 with ``PaluAttention`` in every layer. No model code is copied.

Phi-3, its joined matrices taken apart, is Mistral.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3Model

from palu_vllm.format.checkpoint import INDEX, SINGLE, CheckpointError, check_shapes
from palu_vllm.format.config import AttentionGeometry, PaluConfig, rope_type
from palu_vllm.format.layers import layer_shape
from palu_vllm.huggingface.attention import PaluAttention
from palu_vllm.huggingface.configuration import (
    PaluLlamaConfig,
    PaluMistralConfig,
    PaluPhi3Config,
    PaluQwen2Config,
    PaluQwen3Config,
)


class _Palu(PreTrainedModel):
    """What transformers must know of every compressed model."""

    # these attention implementations and vLLM's wrapper of transformers models need keys as wide as values
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False
    _tp_plan = None

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PaluAttention):
            module.init_weights(self.config.initializer_range)


class _PaluDecoder(_Palu):
    """A decoder stack whose layers keep latents. Raises ValueError where ``palu_config`` is missing or wrong."""

    def __init__(self, config: PreTrainedConfig) -> None:
        read = config.to_dict()
        palu, geometry = PaluConfig.from_hf_config(read), AttentionGeometry.from_hf_config(read)
        rope_type(read)
        super().__init__(config)
        dtype = str(torch.get_default_dtype()).removeprefix("torch.")  # transformers builds models under their dtype
        for index, layer in enumerate(self.layers):
            layer.self_attn = PaluAttention(
                config,
                index,
                palu.source_layer(index),
                replace(layer_shape(palu, geometry, index), slot=palu.slot_format(index, dtype)),
                palu.attention_bias,
                type(self.rotary_emb)(config=config),
            )
        self.shares_layers = palu.num_shared > 0
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; layers that share find what they read with every forward pass."""
        if self.shares_layers:
            kwargs["contexts"] = {}
        return super().forward(*args, **kwargs)


class _PaluCausalLM(_Palu):
    """A decoder and its output layer, loaded completely or not at all."""

    decoder_class: type[_PaluDecoder]

    def __init__(self, config: PreTrainedConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """As in transformers. Raises CheckpointError where that would only warn: tensors missing or unexpected."""
        directory = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if any((directory / name).is_file() for name in (SINGLE, INDEX)):
            check_shapes(directory)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for kind in ("missing", "unexpected"):
            if names := info[f"{kind}_keys"]:
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} has {len(names)} {kind} tensors, {min(names)} among them; "
                    "compress the model again."
                )
        return (model, info) if output_loading_info else model


class PaluLlamaModel(_PaluDecoder, LlamaModel):
    config_class = PaluLlamaConfig
    _can_record_outputs = {"hidden_states": LlamaDecoderLayer, "attentions": PaluAttention}


class PaluLlamaForCausalLM(_PaluCausalLM, LlamaForCausalLM):
    config_class = PaluLlamaConfig
    decoder_class = PaluLlamaModel


class PaluMistralModel(_PaluDecoder, MistralModel):
    config_class = PaluMistralConfig
    _can_record_outputs = {"hidden_states": MistralDecoderLayer, "attentions": PaluAttention}


class PaluMistralForCausalLM(_PaluCausalLM, MistralForCausalLM):
    config_class = PaluMistralConfig
    decoder_class = PaluMistralModel


class PaluQwen2Model(_PaluDecoder, Qwen2Model):
    config_class = PaluQwen2Config
    _can_record_outputs = {"hidden_states": Qwen2DecoderLayer, "attentions": PaluAttention}


class PaluQwen2ForCausalLM(_PaluCausalLM, Qwen2ForCausalLM):
    config_class = PaluQwen2Config
    decoder_class = PaluQwen2Model


class PaluQwen3Model(_PaluDecoder, Qwen3Model):
    config_class = PaluQwen3Config
    _can_record_outputs = {"hidden_states": Qwen3DecoderLayer, "attentions": PaluAttention}


class PaluQwen3ForCausalLM(_PaluCausalLM, Qwen3ForCausalLM):
    config_class = PaluQwen3Config
    decoder_class = PaluQwen3Model


class PaluPhi3Model(_PaluDecoder, MistralModel):
    config_class = PaluPhi3Config
    _can_record_outputs = {"hidden_states": MistralDecoderLayer, "attentions": PaluAttention}


class PaluPhi3ForCausalLM(_PaluCausalLM, MistralForCausalLM):
    config_class = PaluPhi3Config
    decoder_class = PaluPhi3Model
