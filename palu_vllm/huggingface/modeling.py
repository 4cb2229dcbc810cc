"""transformers' own models with ``PaluAttention`` in every layer, one pair of classes per family of ``FAMILIES``.

No model code is copied.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from palu_vllm.families import CAUSAL_LM, FAMILIES, MODEL, palu_class
from palu_vllm.format.checkpoint import INDEX, SINGLE, CheckpointError, check_shapes
from palu_vllm.format.config import AttentionGeometry, PaluConfig, rope_type
from palu_vllm.format.layers import layer_shape
from palu_vllm.huggingface.attention import IMPLEMENTATIONS, PaluAttention
from palu_vllm.huggingface.configuration import CONFIGURATIONS
from palu_vllm.huggingface.positions import check_positions


class _Palu(PreTrainedModel):
    """What transformers must know of every compressed model, which is loaded completely or not at all."""

    others: ClassVar[tuple[str, ...]] = ()  # tensors of a checkpoint that belong to another class

    # these attention implementations and vLLM's wrapper of transformers models need keys as wide as values
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False
    _tp_plan = None

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """As in transformers, which would ask for flash attention's package first, and then for another model."""
        if attn_implementation not in (None, *IMPLEMENTATIONS):
            raise ValueError(
                f"attn_implementation {attn_implementation!r} cannot attend to latents; "
                f"choose {' or '.join(IMPLEMENTATIONS)}, or serve the checkpoint with vLLM."
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PaluAttention):
            module.init_weights(self.config.initializer_range)

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
            if names := set(info[f"{kind}_keys"]) - set(cls.others):
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} has {len(names)} {kind} tensors, {min(names)} among them; "
                    "compress the model again."
                )
        return (model, info) if output_loading_info else model


class _PaluDecoder(_Palu):
    """A decoder stack whose layers keep latents. Raises ValueError where ``palu_config`` is missing or wrong."""

    others = ("lm_head.weight",)

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

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; layers that share find what they read with every forward pass.

        Raises ValueError for ``position_ids`` that the cache cannot honour. Without a cache and a mask, transformers
        takes a jump in them for the start of another sequence, and no distance goes across it.
        """
        cached = past_key_values is not None or kwargs.get("use_cache", self.config.use_cache)
        if position_ids is not None and (cached or attention_mask is not None):
            slots = past_key_values.get_seq_length() if past_key_values is not None else 0
            check_positions(position_ids, attention_mask, slots)
        if self.shares_layers:
            kwargs["contexts"] = {}
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, *args, **kwargs)


class _PaluCausalLM(_Palu):
    """A decoder and its output layer."""

    decoder_class: type[_PaluDecoder]

    def __init__(self, config: PreTrainedConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ValueError: behind ``generate_batch`` a thread would fail on pages of keys, and give empty lists."""
        raise ValueError(
            "generate_batch and transformers' continuous batching keep pages of keys, and this model keeps latents; "
            "use generate, or serve the checkpoint with vLLM."
        )


def _classes(family: str) -> dict[str, type[_Palu]]:
    """The decoder and the causal model of a family by their names, under which pickle finds them in this module."""
    network = FAMILIES[family][1]
    dense, begin = import_module(f"transformers.models.{network}.modeling_{network}"), FAMILIES[network][0]
    told = {"__module__": __name__, "config_class": CONFIGURATIONS[family]}
    recorded = {"hidden_states": getattr(dense, f"{begin}DecoderLayer"), "attentions": PaluAttention}
    name = palu_class(family, MODEL)
    decoder = type(name, (_PaluDecoder, getattr(dense, begin + MODEL)), told | {"_can_record_outputs": recorded})
    causal_name = palu_class(family, CAUSAL_LM)
    causal = type(causal_name, (_PaluCausalLM, getattr(dense, begin + CAUSAL_LM)), told | {"decoder_class": decoder})
    return {name: decoder, causal_name: causal}


for _family in FAMILIES:
    globals().update(_classes(_family))
