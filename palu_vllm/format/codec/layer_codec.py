"""The codec of one layer: matrices, centres and formats, and what stores and reads vectors with them.

With ``E`` the encoder, ``D`` the decoder and ``D E = 1``: numbers ``y = E (k - centre)`` are coded, and read as
``k = centre + s D level``. A group is several neighbouring KV heads side by side.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from palu_vllm.format.codec.coding import decode, encode
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.format.latent_format import CodedFormat, CodedSlot


@dataclass(frozen=True)
class SideCodec:
    """What K or V of one layer has; ``decoder [groups, group_size * head_dim, rank]``, ``sink [kv_heads, head_dim]``:
    the mean of what the first token of a text has here. Both float32.
    """

    form: CodedFormat
    decoder: torch.Tensor
    sink: torch.Tensor

    @property
    def num_groups(self) -> int:
        return len(self.decoder)

    @cached_property
    def encoder(self) -> torch.Tensor:
        """``E``, float64 ``[groups, rank, group_size * head_dim]``: the decoder's inverse, its pseudo-inverse where
        numbers were cut. Its numbers are float32 ones, so that half as many bytes are read for every token.
        """
        matrix = self.decoder.double()
        inverse = torch.linalg.inv(matrix) if matrix.shape[1] == matrix.shape[2] else torch.linalg.pinv(matrix)
        return inverse.float().double()

    def grouped(self, heads: torch.Tensor) -> torch.Tensor:
        """``[..., kv_heads, head_dim]`` to ``[..., groups, group_size * head_dim]``."""
        return heads.flatten(-2).unflatten(-1, (self.num_groups, -1))

    def numbers(self, heads: torch.Tensor) -> torch.Tensor:
        """``E x`` in float64, ``[..., groups, rank]``."""
        return torch.einsum("...gd,grd->...gr", self.grouped(heads).double(), self.encoder)

    def stored(self, heads: torch.Tensor, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Payload ``[..., groups, form.bytes]`` and signed scale ``[..., groups, 1]`` of ``heads`` around whichever
        centre is nearer, the sink's where the scale is negative. ``centre`` broadcasts with ``heads``.
        """
        y = self.numbers(heads)
        usual = (y - self.numbers(centre)).float()
        first = (y - self.numbers(self.sink)).float()
        nearer = first.square().sum(-1, keepdim=True) < usual.square().sum(-1, keepdim=True)
        payload, scale = encode(torch.where(nearer, first, usual), self.form)
        return payload, torch.where(nearer, -scale, scale)

    def read(self, payload: torch.Tensor, scale: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """The heads of :meth:`stored`, float32 ``[..., kv_heads, head_dim]``."""
        heads = len(self.sink)
        numbers = decode(payload, self.form) * scale.float().abs()
        read = torch.einsum("...gr,gdr->...gd", numbers, self.decoder).flatten(-2).unflatten(-1, (heads, -1))
        first = torch.signbit(scale).repeat_interleave(heads // self.num_groups, -2)
        return torch.where(first, self.sink, centre) + read


@dataclass(frozen=True)
class LayerCodec:
    """The codec of one attention layer.

    ``centre_cos``, ``centre_sin [kv_heads, head_dim]`` and ``frequency_of [head_dim]`` (numbers of ``frequencies [F]``)
    give the usual centre of keys, see ``positions``; ``value_mean [kv_heads, value_dim]`` is that of values.
    """

    key: SideCodec
    value: SideCodec
    centre_cos: torch.Tensor
    centre_sin: torch.Tensor
    frequency_of: torch.Tensor
    frequencies: torch.Tensor
    value_mean: torch.Tensor

    @cached_property
    def slot(self) -> CodedSlot:
        return CodedSlot(self.key.form, self.value.form)

    @property
    def num_kv_heads(self) -> int:
        return len(self.key.sink)

    @property
    def num_groups(self) -> int:
        return self.key.num_groups

    @property
    def bytes_per_token(self) -> int:
        """Of all groups."""
        return self.num_groups * self.slot.bytes

    def key_centre(self, blocks: torch.Tensor) -> torch.Tensor:
        """The usual centre of keys in ``blocks`` of positions, float32 ``[len(blocks), kv_heads, head_dim]``."""
        cos, sin = features(self.frequencies, blocks).chunk(2, dim=-1)
        return self.centre_cos * cos[:, None, self.frequency_of] + self.centre_sin * sin[:, None, self.frequency_of]

    def rounded(
        self, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What keys and values ``[tokens, kv_heads, dim]`` at ``positions [tokens]`` are read as, float32."""
        centre = self.key_centre(positions // BLOCK)
        keys = self.key.read(*self.key.stored(key, centre), centre)
        return keys, self.value.read(*self.value.stored(value, self.value_mean), self.value_mean)

    def to(self, device: torch.device | str) -> "LayerCodec":
        def side(of: SideCodec) -> SideCodec:
            return SideCodec(of.form, of.decoder.to(device), of.sink.to(device))

        rest = (self.centre_cos, self.centre_sin, self.frequency_of, self.frequencies, self.value_mean)
        return LayerCodec(side(self.key), side(self.value), *(tensor.to(device) for tensor in rest))
