"""What the layers of one KV cache group get with every batch, and who makes it."""

from dataclasses import dataclass

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from palu_vllm.attention_backend.graphs import decoding_support
from palu_vllm.kernels.interface import PagedBatch


@dataclass
class PaluMetadata(AttentionMetadata):
    """One scheduled batch as the layers of one KV cache group see it. Filled by PaluMetadataBuilder.build."""

    num_actual_tokens: int  # queries that are not padding; rows past them are left alone
    batch: PagedBatch  # on the device of the model; its lengths count tokens


class PaluMetadataBuilder(AttentionMetadataBuilder[PaluMetadata]):
    """One per KV cache spec. Copies nothing and never synchronises with the device."""

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: VllmConfig, kv_cache_spec: AttentionSpec) -> AttentionCGSupport:
        return decoding_support(vllm_config)

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
