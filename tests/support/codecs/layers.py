"""Random codecs of small layers, and the plain attention that they are held to."""

import torch

from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from palu_vllm.format.codec.levels import unit
from palu_vllm.format.latent_format import CodedFormat, Tier
from palu_vllm.kernels.codec.interface import CodecSettings

Tiers = tuple[tuple[int, int], ...]


def coded_format(tiers: Tiers) -> CodedFormat:
    return CodedFormat(tuple(Tier(size, bits) for size, bits in tiers))


def side_codec(tiers: Tiers, groups: int, sink: torch.Tensor, seed: int) -> SideCodec:
    """A codec of a random well-conditioned basis whose numbers have about one standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    form = coded_format(tiers)
    width = sink.numel() // groups
    basis = torch.linalg.qr(torch.randn(groups, width, width, generator=generator, dtype=torch.float64)).Q
    stretch = torch.rand(groups, 1, width, generator=generator, dtype=torch.float64) + 0.5
    steps = torch.cat([torch.full((tier.size,), unit(tier.bits)) for tier in form.tiers]).double()
    return SideCodec(form, ((basis * stretch)[..., : form.rank] * steps).float(), sink)


def layer_codec(
    tiers_k: Tiers, tiers_v: Tiers, kv_heads: int = 2, head_dim: int = 32, value_dim: int = 32, groups: int = 1
) -> LayerCodec:
    """The codec of a layer with RoPE of base 10,000 on all numbers of a head; centres are random."""
    generator = torch.Generator().manual_seed(7)

    def random(width: int, size: float) -> torch.Tensor:
        return size * torch.randn(kv_heads, width, generator=generator)

    return LayerCodec(
        side_codec(tiers_k, groups, random(head_dim, 8.0), 1),
        side_codec(tiers_v, groups, random(value_dim, 4.0), 2),
        random(head_dim, 2.0),
        random(head_dim, 2.0),
        torch.arange(head_dim) % (head_dim // 2),
        10_000.0 ** -(torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2)),
        random(value_dim, 1.0),
    )


def decoded(codec: LayerCodec, slots: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense keys and values of ``slots [tokens, groups, bytes]`` at ``positions``: ``centre + s D level``."""
    from palu_vllm.format.codec.coding import decode
    from palu_vllm.format.codec.positions import BLOCK

    slot, tokens = codec.slot, len(slots)
    scales = slots[..., : slot.key_start].contiguous().view(torch.float16).float()
    found = []
    sides = (
        (codec.key, slots[..., slot.key_start : slot.value_start], codec.key_centre(positions // BLOCK)),
        (
            codec.value,
            slots[..., slot.value_start :],
            codec.value_mean.expand(tokens, -1, -1),
        ),
    )
    for number, (side, payload, centre) in enumerate(sides):
        scale = scales[..., number, None]
        numbers = torch.einsum("tgr,gdr->tgd", decode(payload, side.form) * scale.abs(), side.decoder)
        sink = torch.signbit(scale).repeat_interleave(codec.num_kv_heads // codec.num_groups, 1)
        found.append(torch.where(sink, side.sink, centre) + numbers.reshape(centre.shape))
    return found[0], found[1]


def plain_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, settings: CodecSettings
) -> torch.Tensor:
    """Causal attention of the last ``len(query)`` tokens over dense ``keys`` and ``values [tokens, kv_heads, dim]``."""
    tokens, repeats = len(keys), query.shape[1] // keys.shape[1]
    scores = settings.scale * torch.einsum("qhd,thd->hqt", query, keys.repeat_interleave(repeats, 1))
    if settings.soft_cap:
        scores = settings.soft_cap * (scores / settings.soft_cap).tanh()
    distance = torch.arange(tokens - len(query), tokens)[:, None] - torch.arange(tokens)
    seen = (distance >= 0) & (distance < (settings.sliding_window or tokens + 1))
    scores = scores.masked_fill(~seen, -torch.inf)
    if settings.sinks is not None:
        extra = settings.sinks[:, None, None].expand(-1, len(query), 1)
        probabilities = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
    else:
        probabilities = scores.softmax(-1)
    return torch.einsum("hqt,thd->qhd", probabilities, values.repeat_interleave(repeats, 1))
