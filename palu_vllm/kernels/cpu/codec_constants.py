"""What the C++ library is given of a layer: matrices with the centres beside them, and the table of positions."""

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.levels import levels, unit
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.format.latent_format import CodedFormat
from palu_vllm.kernels.codec.interface import CodecSettings

COLUMNS = 32  # csrc/matrix.hpp


def tiers(form: CodedFormat) -> list[int]:
    """Size and bits of every tier, one after the other."""
    return [number for tier in form.tiers for number in (tier.size, tier.bits)]


def code_levels() -> list[int]:
    """The levels of codes of 2 to 5 bits, one after the other."""
    return [int(level) for bits in range(2, 6) for level in levels(bits)]


def code_units() -> list[float]:
    """What the levels of 2 to 5 and of 8 bits count in, in standard deviations."""
    return [unit(bits) for bits in (2, 3, 4, 5, 8)]


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


def padded(matrices: torch.Tensor) -> torch.Tensor:
    """``[.., columns]`` with zeros up to whole ``COLUMNS``."""
    return torch.nn.functional.pad(matrices, (0, -matrices.shape[-1] % COLUMNS)).contiguous()


def tensors(codec: LayerCodec, settings: CodecSettings) -> dict[str, torch.Tensor]:
    """The matrices above, and what a token is stored with: encoders ``[groups, width, rank]`` and the numbers of
    constant centres ``[groups, rank]`` in float64.
    """
    found = {
        "query_map": padded(query_map(codec, settings)),
        "value_map": padded(value_map(codec)),
        "encoder_k": codec.key.encoder.transpose(1, 2).contiguous(),
        "encoder_v": codec.value.encoder.transpose(1, 2).contiguous(),
        "sink_k": codec.key.numbers(codec.key.sink),
        "sink_v": codec.value.numbers(codec.value.sink),
        "value_mean": codec.value.numbers(codec.value_mean),
        "centre_cos": codec.centre_cos.contiguous(),
        "centre_sin": codec.centre_sin.contiguous(),
        "frequency_of": codec.frequency_of.long(),
        "decoder_k": per_head(codec, codec.key.decoder).contiguous(),
        "first_k": codec.key.sink.contiguous(),
        "first_v": codec.value.sink.contiguous(),
        "mean_v": codec.value_mean.contiguous(),
    }
    return found if settings.sinks is None else found | {"sinks": settings.sinks.float()}


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
    return _tables.setdefault(frequencies.double().numpy().tobytes(), PositionTable(frequencies))
