"""Fewer latents than a checkpoint has, chosen when a server starts: ``{"palu": {"rank_ratio": 0.35}}``.

The factors of ``palu-compress`` come from an eigendecomposition, latents ordered by the energy that they keep, so the
leading ones of every group are the factors of the lower rank: a prefix of a compressed model is a compressed model
(what MatryoshkaKV, arXiv 2410.14731, trains for). Mixing, which spreads latents evenly, ends that order.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.format.layers import layer_shape
from palu_vllm.format.shape import LayerShape, rank_step

ORDERED = ("svd", "whiten", "weighted")  # objectives of palu-compress whose latents are ordered by energy


@dataclass(frozen=True)
class Projection:
    """``k_proj`` or ``v_proj`` of one layer. What it costs is numbers of the cache per token."""

    rank: int
    groups: int
    full_rank: int

    @property
    def step(self) -> int:
        """Ranks are chosen in these, as the compressor does."""
        return rank_step(self.full_rank)

    @property
    def lowest(self) -> int:
        """A projection at full rank is stored without factors, so that none of it can be left out."""
        return self.rank if self.rank == self.full_rank else min(self.rank, self.step)

    def below(self, rank: int) -> int:
        """The next rank below that may be served; ``rank`` itself where there is none."""
        return max((rank - 1) // self.step * self.step, self.lowest)


def ranks_at(palu: PaluConfig, geometry: AttentionGeometry, ratio: float) -> tuple[list[int], list[int]]:
    """``(rank_k, rank_v)`` per layer that keep the fraction ``ratio`` of the dense numbers, to the nearest step; of
    those of layers with a cache, where others read theirs.

    Every projection keeps about the same fraction of the checkpoint's rank, in multiples of 16 and at least 16, and
    never more than there is. A projection that is stored whole stays whole. From a checkpoint of equal ranks these are
    the ranks of ``--search uniform``. Raises ValueError with one sentence for latents that are not ordered, and for a
    ratio that the checkpoint cannot be served at.
    """
    _check_order(palu)
    projections, holders = _projections(palu, geometry), palu.caching_layers
    kept = [projection.rank for projection in projections]
    full = sum(each.groups * each.full_rank for each in projections)
    excess = sum(each.groups * each.rank for each in projections) - ratio * full
    _check_ratio(projections, ratio, excess / full)
    while (chosen := _next(projections, kept, excess)) is not None:
        lower = projections[chosen].below(kept[chosen])
        excess -= projections[chosen].groups * (kept[chosen] - lower)
        kept[chosen] = lower
    own = [holders.index(palu.source_layer(layer)) for layer in range(geometry.num_layers)]
    return [kept[2 * each] for each in own], [kept[2 * each + 1] for each in own]


def _projections(palu: PaluConfig, geometry: AttentionGeometry) -> list[Projection]:
    """K and V of one layer after the other, of those that hold latents of their own."""
    sizes = (palu.group_size_k, palu.group_size_v)
    return [
        Projection(rank, geometry.num_kv_heads // size, size * geometry.head_dim)
        for layer in palu.caching_layers
        for rank, size in zip((palu.rank_k[layer], palu.rank_v[layer]), sizes, strict=True)
    ]


def _next(projections: list[Projection], kept: list[int], excess: float) -> int | None:
    """Which projection loses its next step: the one with the most of its rank at the step's middle, of equals the last.

    That is one fraction of all ranks, each rounded to the nearest step (Webster's method). Those are left alone whose
    step would end farther from the target than leaving it; None where all are.
    """
    middles = []
    for index, (projection, rank) in enumerate(zip(projections, kept, strict=True)):
        lower = projection.below(rank)
        if 0 < projection.groups * (rank - lower) < 2 * excess:
            middles.append(((lower + rank) / projection.rank, index))
    return max(middles)[1] if middles else None


def _check_order(palu: PaluConfig) -> None:
    if palu.hadamard:
        raise ValueError(
            "rank_ratio needs latents ordered by energy, but those of this checkpoint are mixed for few bits; "
            "compress the model with --no-hadamard, and have the server mix what it keeps with hadamard."
        )
    if palu.objective not in ORDERED:
        raise ValueError(
            f"rank_ratio needs latents ordered by energy, which is not known of this checkpoint (objective "
            f"{palu.objective}); compress the model with palu-compress."
        )


def _check_ratio(projections: list[Projection], ratio: float, excess: float) -> None:
    """``excess`` is the checkpoint's ratio minus ``ratio``. A ratio counts as the nearest that can be served."""
    full = sum(each.groups * each.full_rank for each in projections)
    half_step = min(each.groups * each.step for each in projections) / full / 2
    lowest = sum(each.groups * each.lowest for each in projections) / full
    if excess <= -half_step:
        raise ValueError(
            f"rank_ratio {ratio} is above {ratio + excess:.4g}, the fraction of ranks that the checkpoint has; "
            "choose less, or compress the model again."
        )
    if ratio < lowest - half_step:
        raise ValueError(
            f"rank_ratio {ratio} is below {lowest:.4g}, where every projection of this checkpoint has the fewest ranks "
            "that it can be served with (those stored whole stay whole); choose that or more."
        )


def leading_latents(
    weights: Iterable[tuple[str, torch.Tensor]], files: PaluConfig, served: PaluConfig, geometry: AttentionGeometry
) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors of the files, cut to the ranks that are served; before they are split over devices by groups."""
    shapes = {
        attention_prefix(layer): (layer_shape(files, geometry, layer), layer_shape(served, geometry, layer))
        for layer in range(geometry.num_layers)
    }
    yield from in_attention(weights, lambda name, tensor, prefix: cut(name, tensor, *shapes[prefix]))


def in_attention(
    weights: Iterable[tuple[str, torch.Tensor]], change: Callable[[str, torch.Tensor, str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors, those of attention as ``change(name below self_attn., tensor, attention prefix)`` has them."""
    for name, tensor in weights:
        prefix, attention, inside = name.partition(".self_attn.")
        yield name, change(inside, tensor, prefix + attention) if attention else tensor


def cut(name: str, tensor: torch.Tensor, stored: LayerShape, served: LayerShape) -> torch.Tensor:
    """The tensor ``name`` (below ``self_attn.``) of a layer of ``served`` ranks, of that of ``stored`` ones."""
    if name == "k_down.weight":
        return _leading(tensor, 0, stored.rank_k, served.rank_k)
    if name == "v_down.weight":
        return _leading(tensor, 0, stored.rank_v, served.rank_v)
    if name == "k_up":
        return tensor[:, : served.rank_k]
    if name == "v_up":
        return tensor[:, : served.rank_v]
    if name == "o_proj.weight" and stored.value_path == "fused":
        return _leading(tensor, 1, stored.rank_v, served.rank_v)
    return tensor


def _leading(tensor: torch.Tensor, dim: int, stored: int, served: int) -> torch.Tensor:
    """The first ``served`` of every ``stored`` rows or columns."""
    blocks = tensor.unflatten(dim, (-1, stored))
    return blocks.narrow(dim + 1, 0, served).flatten(dim, dim + 1)
