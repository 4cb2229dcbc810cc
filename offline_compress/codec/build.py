"""From moments to a codec: centres and bases of every layer, then formats, then matrices."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from offline_compress.codec.allocation import Allocation, Layer, allocate, unquantized
from offline_compress.codec.basis import Basis, basis, decoder
from offline_compress.codec.centres import KeyCentre, key_centre
from offline_compress.codec.collect import Collected
from offline_compress.codec.moments import LayerMoments
from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import CodedSlot

DENSE_BYTES = 2  # of a number that is not coded
LEAST_CODED = 1.9  # times fewer bytes; below it nothing is quantized, for 8 bits are the most that codes have


@dataclass(frozen=True)
class SolvedLayer:
    """What does not depend on the budget."""

    moments: LayerMoments
    centre: KeyCentre
    bases: KV[Basis]

    @property
    def dense_bytes(self) -> int:
        """Per token."""
        return DENSE_BYTES * self.moments.kv_heads * (self.moments.head_dim + self.moments.value_dim)


def solve(moments: LayerMoments, frequencies: dict[str, torch.Tensor]) -> SolvedLayer:
    """Centres and bases of one layer."""
    centre = key_centre(moments, frequencies)
    value = moments.sides.value
    mean = value.total / moments.tokens
    spread = value.second / moments.tokens - mean[..., :, None] * mean[..., None, :]
    metrics = moments.sides.map(lambda side: side.metric / max(1, side.measured))
    return SolvedLayer(moments, centre, KV(basis(centre.covariance, metrics.key), basis(spread, metrics.value)))


def solve_all(collected: Collected) -> dict[int, SolvedLayer]:
    """Every layer by its number."""
    return {number: solve(layer, collected.frequencies) for number, layer in sorted(collected.layers.items())}


def chosen(
    solved: dict[int, SolvedLayer], compression: float, max_formats: int, ratios: Mapping[int, float] | None = None
) -> Allocation:
    """Slots of all layers at ``compression`` times fewer bytes than 16 bits. Raises CompressionError for too many.

    ``ratios``: what a layer loses over what its moments say, 1 where nothing is known.
    """
    if compression < LEAST_CODED:
        slots = [CodedSlot(*layer.bases.map(lambda each: unquantized(each.width))) for layer in solved.values()]
        return Allocation(tuple(slots), (0.0,) * len(slots))
    budget = sum(layer.dense_bytes for layer in solved.values()) / compression
    known = ratios or {}
    layers = [Layer(layer.bases, known.get(number, 1.0)) for number, layer in solved.items()]
    return allocate(layers, budget, max_formats)


def build(solved: SolvedLayer, slot: CodedSlot) -> LayerCodec:
    """The codec of one layer."""
    moments, centre = solved.moments, solved.centre
    heads = KV((moments.kv_heads, moments.head_dim), (moments.kv_heads, moments.value_dim))
    means = [side.first / max(1, side.firsts) for side in moments.sides]
    sinks = [mean.reshape(shape).float() for mean, shape in zip(means, heads, strict=True)]
    mean = moments.sides.value.total / moments.tokens
    return LayerCodec(
        key=SideCodec(slot.key, decoder(solved.bases.key, slot.key), sinks[0]),
        value=SideCodec(slot.value, decoder(solved.bases.value, slot.value), sinks[1]),
        centre_cos=centre.cos.float(),
        centre_sin=centre.sin.float(),
        frequency_of=centre.frequency_of,
        frequencies=centre.frequencies,
        value_mean=mean.reshape(heads.value).float(),
    )
