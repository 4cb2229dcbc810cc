"""What attention over codec slots multiplies with, made once per layer: matrices with centres, a table of positions."""

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.kernels.codec.interface import CodecSettings


def per_head(codec: LayerCodec, decoder: torch.Tensor) -> torch.Tensor:
    """``decoder [groups, group_size * dim, rank]`` as ``[kv_heads, dim, rank]``."""
    return decoder.unflatten(1, (codec.num_kv_heads // codec.num_groups, -1)).flatten(0, 1)


def query_map(codec: LayerCodec, settings: CodecSettings) -> torch.Tensor:
    """What a query is multiplied by, scale included: float32 ``[kv_heads, head_dim, rank + 1 + 2 F]``.

    The columns give its numbers in the basis of the codes, its score with the first token's centre, and what is
    multiplied by a block's ``features`` for its score with the usual centre.
    """
    fold = torch.nn.functional.one_hot(codec.frequency_of, len(codec.frequencies)).float()  # [head_dim, F]
    parts = [
        per_head(codec, codec.key.decoder),
        codec.key.sink[..., None],
        codec.centre_cos[..., None] * fold,
        codec.centre_sin[..., None] * fold,
    ]
    return torch.cat(parts, dim=-1) * settings.scale


def value_map(codec: LayerCodec) -> torch.Tensor:
    """What the mean of levels and the shares of both centres are multiplied by: ``[kv_heads, rank + 2, value_dim]``."""
    decoder = per_head(codec, codec.value.decoder).transpose(1, 2)
    return torch.cat((decoder, codec.value_mean[:, None], codec.value.sink[:, None]), dim=1)


class PositionTable:
    """``features`` of blocks of positions, as many as were needed so far."""

    def __init__(self, frequencies: torch.Tensor) -> None:
        self.frequencies = frequencies
        self.rows = torch.empty(0, 2 * len(frequencies))

    def up_to(self, length: int) -> torch.Tensor:
        """``[blocks, 2 F]`` of the blocks of positions 0 to ``length - 1``, and perhaps more."""
        blocks = -(-length // BLOCK)
        if blocks > len(self.rows):
            more = torch.arange(len(self.rows), max(blocks, 2 * len(self.rows)))
            self.rows = torch.cat((self.rows, features(self.frequencies, more)))
        return self.rows


_tables: dict[bytes, PositionTable] = {}


def position_table(frequencies: torch.Tensor) -> PositionTable:
    """One for all the layers with these frequencies."""
    frequencies = frequencies.double().cpu()
    return _tables.setdefault(frequencies.numpy().tobytes(), PositionTable(frequencies))
