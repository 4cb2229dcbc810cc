"""The backend of attention layers with a codec tells vLLM what it can do."""

from palu_vllm.attention_backend.backend import PaluBackend
from palu_vllm.attention_backend.codec.impl import CodecImpl
from palu_vllm.attention_backend.codec.metadata import CodecMetadataBuilder


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
