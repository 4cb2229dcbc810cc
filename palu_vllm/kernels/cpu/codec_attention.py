"""Attention over codec slots on a CPU, in the C++ library of this folder."""

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.codec.constants import position_table
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.cpu.codec_constants import code_levels, code_units, tensors, tiers
from palu_vllm.kernels.interface import PagedBatch


class CpuCodecAttention:
    """``store`` and ``attend`` of ``kernels.codec.interface``. Needs ``compiled.why_not()`` to be None."""

    def __init__(self, codec: LayerCodec, settings: CodecSettings) -> None:
        self.settings = settings
        self.positions = position_table(codec.frequencies)
        heads, window = (codec.num_groups, codec.num_kv_heads, settings.num_heads), settings.sliding_window or 0
        shape = [*heads, window, codec.value.sink.shape[1], 2 * len(codec.frequencies)]
        self.library = torch.classes.palu_cpu.Codec(
            tiers(codec.key.form), tiers(codec.value.form), code_levels(), code_units(), shape,
            tensors(codec, settings), settings.scale, settings.soft_cap,
        )  # fmt: skip

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        tokens = len(slot_mapping)
        if tokens:
            table = self.positions.up_to(int(positions[:tokens].max()) + 1)
            self.library.put(key, value, positions, cache, slot_mapping, table)

    def captures(self, queries: int) -> bool:
        return False

    def measure(self, query: torch.Tensor, out: torch.Tensor) -> None:
        out.zero_()

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        table = self.positions.up_to(batch.max_seq_len)
        self.library.attend(query, cache, batch.block_table, batch.seq_lens, batch.query_start_loc, table, out)
