"""``--reorder-heads`` puts KV heads in an order in which similar ones share a group.

Which heads share a decomposition is a choice: a permutation of KV heads, their query heads with them, changes nothing
of what a layer computes when the rows of the query, key and value projections and the columns of the output projection
move together. Similar is what linear CKA says of two heads' outputs on the calibration data, ``|W_a H W_b^T|^2 /
(|W_a H W_a^T| |W_b H W_b^T|)`` (Kornblith et al., 2019, not centred), mean of keys and values; ReCalKV (2025) reorders
heads by it too. Where K and V are grouped differently, the larger groups are found first and the smaller ones within
them, each by the similarity of its own side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from offline_compress.model.access import KEY, OUTPUT, QUERY, VALUE, is_replaced, projection
from offline_compress.model.source import SourceModel
from offline_compress.plan import Plan


def similarity(weight: torch.Tensor, heads: int, second_moment: torch.Tensor | None) -> torch.Tensor:
    """CKA of all pairs of heads of ``weight [heads * head_dim, hidden]``: ``[heads, heads]`` float64, in [0, 1]."""
    wide = weight.double()
    product = wide @ wide.T if second_moment is None else wide @ second_moment @ wide.T
    blocks = product.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).transpose(1, 2)
    squared = blocks.square().sum((-2, -1))
    lengths = squared.diagonal().sqrt()
    return squared / (lengths[:, None] * lengths).clamp(min=torch.finfo(torch.float64).tiny)


def grouped_order(similar: torch.Tensor, group_size: int) -> list[int]:
    """Heads group by group, heads of a group and groups in ascending order.

    A group begins with the most similar two heads that are left and takes in whoever is most similar to its heads.
    """
    left, groups = list(range(len(similar))), []
    while left:
        pairs = [(-similar[a, b].item(), a, b) for a in left for b in left if a < b]
        group = list(min(pairs)[1:])[:group_size] if pairs else left[:1]
        while len(group) < group_size:
            rest = [head for head in left if head not in group]
            group.append(min(rest, key=lambda head: (-similar[head, group].sum().item(), head)))
        left = [head for head in left if head not in group]
        groups.append(sorted(group))
    return [head for group in sorted(groups) for head in group]


def nested_order(coarse: torch.Tensor, large: int, fine: torch.Tensor, small: int) -> list[int]:
    """Heads in groups of ``large`` by the similarity ``coarse``, within them in groups of ``small`` by ``fine``."""
    outer, order = grouped_order(coarse, large), []
    for start in range(0, len(outer), large):
        group = outer[start : start + large]
        order += [group[i] for i in grouped_order(fine[group][:, group], small)]
    return order


def permuted(rows: torch.Tensor, order: Sequence[int], dim: int = 0) -> torch.Tensor:
    """``rows`` with the ``len(order)`` equal parts of dimension ``dim`` in the order given."""
    parts = rows.chunk(len(order), dim)
    return torch.cat([parts[head] for head in order], dim)


def restored(rows: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """``rows`` whose parts lie in ``order``, with each part in its own place again."""
    return permuted(rows, sorted(range(len(order)), key=order.__getitem__))


@dataclass(frozen=True)
class ReorderedSource(SourceModel):
    """A model whose attention heads are read in the ``order`` of KV heads; everything else is as it was."""

    order: tuple[int, ...] = ()

    @classmethod
    def of(cls, source: SourceModel, order: Sequence[int]) -> "ReorderedSource":
        fields: Mapping = {name: getattr(source, name) for name in SourceModel.__dataclass_fields__}
        return cls(**fields, order=tuple(order))

    def tensor(self, name: str) -> torch.Tensor:
        stored = super().tensor(name)
        kind = name.split(".")[-2]
        if not is_replaced(name) or kind not in (QUERY, KEY, VALUE, OUTPUT):
            return stored
        if kind != OUTPUT:
            return permuted(stored, self.order)
        return permuted(stored, self.order, dim=1) if stored.dim() == 2 else stored

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        """In one run: rows move."""
        yield self.tensor(name)


def ordered_source(plan: Plan, order: Sequence[int]) -> SourceModel:
    """The model with the heads of a layer in ``order``; itself where nothing moves."""
    return ReorderedSource.of(plan.source, order) if plan.reorders else plan.source


def layer_order(plan: Plan, layer: int, second_moment: torch.Tensor | None) -> list[int]:
    """The order of the KV heads of ``layer``; ``second_moment`` is ``H`` of its inputs, None for the identity."""
    heads = plan.geometry.num_kv_heads
    if not plan.reorders:
        return list(range(heads))
    weights = (plan.source.tensor(projection(layer, name)).to(plan.device) for name in (KEY, VALUE))
    keys, values = (similarity(weight, heads, second_moment) for weight in weights)
    sizes = plan.groupings.map(lambda side: side.size)
    if sizes.key == sizes.value:
        return grouped_order(keys + values, sizes.key)
    (small, fine), (large, coarse) = sorted(((sizes.key, keys), (sizes.value, values)), key=lambda side: side[0])
    return nested_order(coarse, large, fine, small)
