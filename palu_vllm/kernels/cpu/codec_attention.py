"""Attention over codec slots on a CPU."""

from palu_vllm.kernels.codec.reference import CodecAttention


class CpuCodecAttention(CodecAttention):
    """``store`` and ``attend`` of ``kernels.codec.interface`` in torch."""
