"""Metadata of a batch with the positions of its tokens, which a codec's centres depend on."""

from dataclasses import dataclass

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from palu_vllm.attention_backend.metadata import PaluMetadata, PaluMetadataBuilder


@dataclass
class CodecMetadata(PaluMetadata):
    """What every layer of a group gets with a batch."""

    positions: torch.Tensor  # [tokens] int64: the number of every token in its text; any for padding


class CodecMetadataBuilder(PaluMetadataBuilder):
    """Makes positions once per step for all layers, on the device, without synchronising with it."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CodecMetadata:
        made = super().build(common_prefix_len, common_attn_metadata, fast_build)
        batch, tokens = made.batch, common_attn_metadata.slot_mapping.shape[0]
        positions = token_positions(batch.query_start_loc, batch.seq_lens, tokens)
        return CodecMetadata(made.num_actual_tokens, batch, positions)


def token_positions(query_start_loc: torch.Tensor, seq_lens: torch.Tensor, tokens: int) -> torch.Tensor:
    """The newest tokens of request r end at its length: int64 ``[tokens]`` of ``[requests + 1]`` and ``[requests]``."""
    numbers = torch.arange(tokens, device=seq_lens.device, dtype=query_start_loc.dtype)
    ends = query_start_loc[1:].contiguous()
    requests = torch.searchsorted(ends, numbers, right=True).clamp_(max=len(ends) - 1)
    return (seq_lens[requests] - ends[requests] + numbers).clamp_(min=0).long()
