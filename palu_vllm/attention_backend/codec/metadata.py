"""Metadata of a batch with the positions of its tokens, which a codec's centres depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec

from palu_vllm.attention_backend.codec.attach import layer_number
from palu_vllm.attention_backend.codec.batch_parts import batch_parts
from palu_vllm.attention_backend.codec.drift import SETTING, DriftOptions, DriftWatch, Sample
from palu_vllm.attention_backend.codec.drift_files import DriftFile
from palu_vllm.attention_backend.codec.served import served_codec
from palu_vllm.attention_backend.metadata import PaluMetadata, PaluMetadataBuilder
from palu_vllm.attention_backend.settings import palu_settings
from palu_vllm.format.codec.file import DRIFT, Codec
from palu_vllm.kernels.gpu.codec.plan import MOST_QUERIES


@dataclass
class CodecMetadata(PaluMetadata):
    """What every layer of a group gets with a batch."""

    positions: torch.Tensor  # [tokens] int64: the number of every token in its text; any for padding
    sample: Sample | None = None  # whose coding errors layers measure


class CodecMetadataBuilder(PaluMetadataBuilder):
    """Makes positions once per step for all layers, on the device, and waits for it once per sample of drift.

    On a GPU it has vLLM put requests of few queries first, which take a path of their own.
    """

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if device.type != "cpu":  # vLLM's name for the queries of requests that come first
            self.reorder_batch_threshold = MOST_QUERIES
        options = DriftOptions.of(palu_settings(vllm_config).get(SETTING, {}))
        codec, file = served_codec(vllm_config), DriftFile(vllm_config, layer_names[0])
        usual = usual_drift(codec, layer_names) if codec else {}
        self._drift = None if options is None else DriftWatch(options, usual, file.write)
        self._positions = torch.zeros(
            vllm_config.scheduler_config.max_num_batched_tokens, dtype=torch.int64, device=device
        )

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CodecMetadata:
        made = super().build(common_prefix_len, common_attn_metadata, fast_build)
        batch, tokens = made.batch, common_attn_metadata.slot_mapping.shape[0]
        if batch.max_query_len > MOST_QUERIES:
            known = common_attn_metadata.query_start_loc_cpu, common_attn_metadata.seq_lens_cpu_upper_bound
            batch = replace(batch, parts=batch_parts(batch, *known))
        positions = self._room(tokens).copy_(token_positions(batch.query_start_loc, batch.seq_lens, tokens))
        sample = self._drift.sample(made.num_actual_tokens) if self._drift else None
        return CodecMetadata(made.num_actual_tokens, batch, positions, sample)

    def _room(self, tokens: int) -> torch.Tensor:
        """The same memory in every step, where captured ones read; more for a batch that is larger than any graph."""
        if tokens > len(self._positions):
            self._positions = self._positions.new_zeros(tokens)
        return self._positions[:tokens]

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> CodecMetadata:
        """Without a sample: what is captured runs at every replay."""
        return replace(super().build_for_cudagraph_capture(common_attn_metadata), sample=None)


def usual_drift(codec: Codec, layer_names: Sequence[str]) -> dict[str, list[float]]:
    """What the codec's file says of text like its calibration's, by the names of layers; nothing of an older file."""
    said = codec.facts.get(DRIFT, {})
    numbers = {name: str(layer_number(name)) for name in layer_names}
    return {name: said[number] for name, number in numbers.items() if number in said}


def token_positions(query_start_loc: torch.Tensor, seq_lens: torch.Tensor, tokens: int) -> torch.Tensor:
    """The newest tokens of request r end at its length: int64 ``[tokens]`` of ``[requests + 1]`` and ``[requests]``."""
    numbers = torch.arange(tokens, device=seq_lens.device, dtype=query_start_loc.dtype)
    ends = query_start_loc[1:].contiguous()
    requests = torch.searchsorted(ends, numbers, right=True).clamp_(max=len(ends) - 1)
    return (seq_lens[requests] - ends[requests] + numbers).clamp_(min=0).long()
