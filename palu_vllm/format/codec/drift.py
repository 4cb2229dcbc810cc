"""Drift: how much larger the coding errors of stored tokens are than those that a codec was made for.

A codec's numbers have unit variances over its calibration, so ``distortion`` of a number's bits is the error expected
of it. Bits are given so that all numbers cost about the same, so the mean of their errors over those expected follows
what the coding costs.
"""

from functools import cache

import torch

from palu_vllm.format.codec.coding import decode, units
from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.codec.levels import distortion
from palu_vllm.format.codec.positions import BLOCK
from palu_vllm.format.latent_format import CodedFormat


@cache
def expected_errors(form: CodedFormat) -> torch.Tensor:
    """The mean squared error of every number that is as in the calibration, in units of its levels, ``[rank]``."""
    errors = torch.cat([torch.full((tier.size,), distortion(tier.bits)) for tier in form.tiers])
    return errors / units(form).square()


def side_drift(side: SideCodec, heads: torch.Tensor, centre: torch.Tensor, payload: torch.Tensor,
               scale: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Squared errors over expected ones, the mean over numbers and groups, float32 ``[tokens]``.

    ``heads [tokens, kv_heads, head_dim]`` are stored as ``payload [tokens, groups, form.bytes]`` and ``scale [tokens,
    groups, 1]`` around ``centre``, which broadcasts with them. NaN where nothing is quantized.
    """
    if not side.form.is_quantized:
        return heads.new_full((len(heads),), torch.nan, dtype=torch.float32)
    middle = torch.where(torch.signbit(scale), side.numbers(side.sink), side.numbers(centre))
    error = (side.numbers(heads) - middle).float() - decode(payload, side.form) * scale.float().abs()
    return (error.square() / expected_errors(side.form).to(error.device)).mean((-2, -1))


def token_drift(
    codec: LayerCodec, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """That of K and of V, float32 ``[2, tokens]``, for ``key`` and ``value [tokens, kv_heads, dim]`` which lie in
    ``slots [tokens, groups, slot.bytes]``. NaN at position 0, which has a centre of its own.
    """
    slot = codec.slot
    scales = slots[..., : slot.key_start].contiguous().view(torch.float16)
    of_keys, of_values = slots[..., slot.key_start : slot.value_start], slots[..., slot.value_start : slot.bytes]
    found = (
        side_drift(codec.key, key, codec.key_centre(positions // BLOCK), of_keys, scales[..., :1]),
        side_drift(codec.value, value, codec.value_mean, of_values, scales[..., 1:]),
    )
    return torch.stack(found).masked_fill(positions == 0, torch.nan)
