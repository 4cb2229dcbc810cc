"""What the C++ library is given of a layer: numbers, levels, and matrices in whole columns."""

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.levels import levels, unit
from palu_vllm.format.latent_format import CodedFormat
from palu_vllm.kernels.codec.constants import per_head, query_map, value_map
from palu_vllm.kernels.codec.interface import CodecSettings

COLUMNS = 32  # csrc/codes/matrix.hpp


def tiers(form: CodedFormat) -> list[int]:
    """Size and bits of every tier, one after the other."""
    return [number for tier in form.tiers for number in (tier.size, tier.bits)]


def code_levels() -> list[int]:
    """The levels of codes of 2 to 5 bits, one after the other."""
    return [int(level) for bits in range(2, 6) for level in levels(bits)]


def code_units() -> list[float]:
    """What the levels of 2 to 5 and of 8 bits count in, in standard deviations."""
    return [unit(bits) for bits in (2, 3, 4, 5, 8)]


def padded(matrices: torch.Tensor) -> torch.Tensor:
    """``[.., columns]`` with zeros up to whole ``COLUMNS``."""
    return torch.nn.functional.pad(matrices, (0, -matrices.shape[-1] % COLUMNS)).contiguous()


def tensors(codec: LayerCodec, settings: CodecSettings) -> dict[str, torch.Tensor]:
    """The matrices above, and what a token is stored with: encoders ``[groups, width, columns]`` in float32, as they
    are rounded anyway, and the numbers of constant centres ``[groups, rank]`` in float64.
    """
    found = {
        "query_map": padded(query_map(codec, settings)),
        "value_map": padded(value_map(codec)),
        "encoder_k": padded(codec.key.encoder.transpose(1, 2).float()),
        "encoder_v": padded(codec.value.encoder.transpose(1, 2).float()),
        "sink_k": codec.key.numbers(codec.key.sink),
        "sink_v": codec.value.numbers(codec.value.sink),
        "value_mean": codec.value.numbers(codec.value_mean),
        "centre_cos": codec.centre_cos.contiguous(),
        "centre_sin": codec.centre_sin.contiguous(),
        "frequency_of": codec.frequency_of.long().repeat(codec.num_kv_heads),
        "decoder_k": per_head(codec, codec.key.decoder).contiguous(),
        "first_k": codec.key.sink.contiguous(),
        "first_v": codec.value.sink.contiguous(),
        "mean_v": codec.value_mean.contiguous(),
    }
    return found if settings.sinks is None else found | {"sinks": settings.sinks.float()}
