"""The backend of attention layers with a codec tells vLLM what it can do, and what a page of theirs holds."""

import functools
from dataclasses import replace

import torch
from vllm.v1.kv_cache_interface import AttentionSpec, KVQuantMode

from palu_vllm.attention_backend.backend import PaluBackend
from palu_vllm.attention_backend.codec.impl import CodecImpl
from palu_vllm.attention_backend.codec.metadata import CodecMetadataBuilder
from palu_vllm.format.latent_format import CodedSlot


class CodecBackend(PaluBackend):
    """Answers as for latents, and to the same name, but attends to codes. ``attach`` gives it to the layers."""

    @staticmethod
    def get_impl_cls() -> type[CodecImpl]:
        return CodecImpl

    @staticmethod
    def get_builder_cls() -> type[CodecMetadataBuilder]:
        return CodecMetadataBuilder

    @classmethod
    def supports_sink(cls) -> bool:
        return True


@functools.cache
def backend_of(slot: CodedSlot, num_groups: int) -> type[CodecBackend]:
    """The backend of all layers with such slots, one class for each kind of them.

    vLLM asks a backend what it keeps, not a layer: for every layer, and for a block of one token of models that have
    linear attention too, whose blocks it makes so large that a page of attention holds a state.
    """

    class SizedBackend(CodecBackend):
        @classmethod
        def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
            return replace(
                spec,
                num_kv_heads=num_groups,
                head_size=slot.value_start,
                head_size_v=slot.bytes - slot.value_start,
                dtype=torch.uint8,
                kv_quant_mode=KVQuantMode.NONE,
            )

    return SizedBackend
