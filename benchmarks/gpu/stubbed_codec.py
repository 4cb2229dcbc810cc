"""A step of a codec's layer without a GPU and without numbers: what its host does is left, and nothing else.

Tensors are on the ``meta`` device, launches go to ``stub_driver``, and of products only the result is made: torch's own
way on that device is Python, which no GPU would wait for.
"""

from dataclasses import replace

import torch

from benchmarks.kernels.codec_layers import CODEC_LAYERS, CONTEXT
from benchmarks.kernels.compile_ahead import meta
from benchmarks.kernels.gpus import GPUS
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention
from palu_vllm.kernels.interface import PagedBatch

LAYERS = 32  # of a model, whose first one makes what all of them share


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.empty(left.shape[0], left.shape[1], right.shape[2], dtype=left.dtype, device=left.device)


def pretend_products() -> None:
    """In this process."""
    torch.bmm = product


class StubbedCodec:
    """One request that decodes a token, over the layer of an 8B model in a quarter of the bytes on an H200."""

    def __init__(self) -> None:
        layer = CODEC_LAYERS["codec_llama_3_8b"]
        self.attention = TritonCodecAttention(layer.codec(), layer.settings(), GPUS["h200"].device)
        self.cache = meta(100, 16, layer.groups, self.attention.codec.slot.bytes, dtype=torch.uint8).transpose(1, 2)
        self.heads = meta(1, layer.kv_heads, layer.head_dim)
        self.query = meta(1, layer.kv_heads * layer.queries_per_kv, layer.head_dim)
        self.out = torch.empty_like(self.query)
        self.place = meta(1, dtype=torch.int64)
        tables = meta(1, CONTEXT // 16, dtype=torch.int32), meta(1, dtype=torch.int32), meta(2, dtype=torch.int32)
        self.batch = PagedBatch(*tables, max_query_len=1, max_seq_len=CONTEXT)
        self.attended = 0

    def store(self) -> None:
        self.attention.store(self.heads, self.heads, self.place, self.cache, self.place)

    def attend(self) -> None:
        """Every 32nd call begins a step."""
        if self.attended % LAYERS == 0:
            self.batch = replace(self.batch)
        self.attended += 1
        self.attention.attend(self.query, self.cache, self.batch, self.out)
