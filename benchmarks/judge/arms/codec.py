"""The KV codec of this project: slots as they are stored, read back to keys and values.

Served attention scores codes without a rebuild; algebraically that is the same.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.judge.arms.arm import CacheArm, Heads, Layer
from palu_vllm.format.codec.file import Codec, load_codec
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.positions import BLOCK
from palu_vllm.format.kv import KV


def read_layer(codec: LayerCodec, whole: KV[torch.Tensor]) -> KV[torch.Tensor]:
    """``[batch, kv_heads, tokens, head_dim]``, tokens at positions 0, 1, ..."""
    key, value = (x.transpose(1, 2) for x in whole)
    centre = codec.key_centre(torch.arange(key.shape[1]) // BLOCK)
    keys = codec.key.read(*codec.key.stored(key, centre), centre)
    values = codec.value.read(*codec.value.stored(value, codec.value_mean), codec.value_mean)
    return KV(keys.transpose(1, 2), values.transpose(1, 2))


@dataclass(frozen=True)
class CodecArm(CacheArm):
    label: str
    directory: Path

    @property
    def name(self) -> str:
        return f"codec_{self.label}"

    @cached_property
    def codec(self) -> Codec:
        return load_codec(self.directory)

    def read_back(self, whole: KV[torch.Tensor], layer: Layer) -> KV[torch.Tensor]:
        coded = self.codec.layers.get(layer.index)
        return whole if coded is None else read_layer(coded, whole)

    def head_bytes(self, head_dim: int) -> float:
        raise NotImplementedError  # layers differ

    def bytes_per_token(self, heads: Heads, context: int) -> float:
        dense = heads.num_layers - len(self.codec.layers)
        return self.codec.bytes_per_token + dense * heads.dense_bytes / heads.num_layers
