"""What the backend can do, and the metadata that its layers get with every batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from vllm.config import VllmConfig
from vllm.config.cache import CacheDType
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec

from palu_vllm.attention_backend.impl import PaluImpl
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.plugin import BACKEND

NOT_A_PALU_LAYER = "PALU attends to latents, which only checkpoints written by palu-compress have"


@dataclass
class PaluMetadata(AttentionMetadata):
    """One scheduled batch as the layers of one KV cache group see it. Filled by PaluMetadataBuilder.build."""

    num_actual_tokens: int  # queries that are not padding; rows past them are left alone
    batch: PagedBatch  # on the device of the model; its lengths count tokens


class PaluMetadataBuilder(AttentionMetadataBuilder[PaluMetadata]):
    """One per KV cache spec. Copies nothing and never synchronises with the device."""

    # Tests show on the CPU what a captured decoding step needs (tests/palu_vllm/kernels/gpu/test_launch.py), but none
    # has been captured: the GPU test of it has never run. Once it has passed, UNIFORM_BATCH. Until then attention runs
    # between the graphs of the rest, which costs the host's time for its launches and cannot be wrong.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PaluMetadata:
        common, seq_lens = common_attn_metadata, common_attn_metadata.seq_lens_cpu_upper_bound
        batch = PagedBatch(
            block_table=common.block_table_tensor,
            seq_lens=common.seq_lens,
            query_start_loc=common.query_start_loc,
            max_query_len=common.max_query_len,
            max_seq_len=common.max_seq_len,
            total_seq_len=None if seq_lens is None else int(seq_lens.sum()),
        )
        return PaluMetadata(common.num_actual_tokens, batch)


class PaluBackend(AttentionBackend):
    """Attention over paged latents. A group is what vLLM calls a KV head, as wide as its latents.

    Only ``LatentAttention`` uses it, by naming it in its constructor. vLLM's own selection always gets the answer
    that it does not fit, because there a dense layer is asking.
    """

    forward_includes_kv_cache_update = False  # latents are written, then read, in prefill too
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]
    # "auto" is the dtype of the model; start_checks refuses another one
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
        return True  # blocks of latents are bytes to them; models/connectors.py says which

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
