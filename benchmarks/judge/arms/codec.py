"""The KV codec of this project: slots as they are stored, read back to keys and values.

Served attention scores codes without a rebuild; algebraically that is the same.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.judge.arms.arm import CacheArm, Heads, Layer
from palu_vllm.format.codec.coding import decode
from palu_vllm.format.codec.file import Codec, load_codec
from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.codec.positions import BLOCK
from palu_vllm.format.kv import KV


def read_side(side: SideCodec, heads: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """``heads [..., kv_heads, head_dim]``, stored around ``centre`` or the sink's, and read back."""
    payload, scale = side.stored(heads, centre)
    scale = scale.float()
    numbers = decode(payload, side.form) * scale.abs()
    read = torch.einsum("...gr,gdr->...gd", numbers, side.decoder).flatten(-2).unflatten(-1, heads.shape[-2:])
    per_head = torch.signbit(scale).repeat_interleave(heads.shape[-2] // side.num_groups, -2)
    return read + torch.where(per_head, side.sink, centre)


def read_layer(codec: LayerCodec, whole: KV[torch.Tensor]) -> KV[torch.Tensor]:
    """``[batch, kv_heads, tokens, head_dim]``, tokens at positions 0, 1, ..."""
    key, value = (x.transpose(1, 2) for x in whole)
    centre = codec.key_centre(torch.arange(key.shape[1]) // BLOCK)
    read = KV(read_side(codec.key, key, centre), read_side(codec.value, value, codec.value_mean))
    return KV(*(x.transpose(1, 2) for x in read))


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
