"""The backend tells vLLM what it can do."""

from typing import ClassVar

import torch
from vllm.config.cache import CacheDType
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionType,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheSpec

from palu_vllm.attention_backend.impl import PaluImpl
from palu_vllm.attention_backend.metadata import PaluMetadataBuilder
from palu_vllm.registry import BACKEND

NOT_A_PALU_LAYER = "PALU attends to latents, which only checkpoints written by palu-compress have"


class PaluBackend(AttentionBackend):
    """Attention over paged latents. A group is what vLLM calls a KV head, as wide as its latents.

    Only ``LatentAttention`` uses it, by naming it in its constructor. vLLM's own selection always gets the answer
    that it does not fit, because there a dense layer is asking.
    """

    forward_includes_kv_cache_update = False  # latents are written, then read, in prefill too
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]
    # "auto" is the dtype of the model; startup/refusals.py refuses another one
    supported_kv_cache_dtypes: ClassVar[list[CacheDType]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return BACKEND

    @staticmethod
    def get_impl_cls() -> type[PaluImpl]:
        return PaluImpl

    @staticmethod
    def get_builder_cls() -> type[PaluMetadataBuilder]:
        return PaluMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: KVCacheSpec | None = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]  # smaller blocks work in principle and are tested nowhere

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        return capability >= DeviceCapability(8, 0)  # the kernels use bfloat16 tensor cores

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER  # latents are rotated by position and masked causally

    @classmethod
    def supports_kv_connector(cls) -> bool:
        return True  # blocks of latents are bytes to them; startup/connectors.py says which

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return False  # tile sizes may follow the batch

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False  # launches are planned from the CPU's query lengths

    @classmethod
    def validate_configuration(cls, *args: object, **kwargs: object) -> list[str]:
        """Asked for dense layers only, see the class."""
        return [NOT_A_PALU_LAYER]
