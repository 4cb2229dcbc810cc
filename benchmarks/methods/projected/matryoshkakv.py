"""MatryoshkaKV (Lin et al. 2024, arXiv 2410.14731): leading coordinates of rotated keys and of values under orthogonal
projections of each head, trained so that any number of them will do; how many, greedily per head.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Self

import torch
from transformers import PreTrainedModel

from benchmarks.methods.harness.calibration import keys_and_values
from benchmarks.methods.harness.interface import Layer, Method, Store, expect
from benchmarks.methods.projected.matryoshka_rates import Cut, ranks_after, searched
from benchmarks.methods.projected.matryoshka_training import Training, distilled
from benchmarks.methods.projected.projection import ProjectedStore, Subspaces

RANKS = ("key_truncate_index", "value_truncate_index", "total_rank")  # what is learnt serves all of them


@dataclass(frozen=True, kw_only=True)
class MatryoshkaKV(Method):
    """``key_truncate_index`` and ``value_truncate_index`` leading coordinates of every head; or, with ``total_rank``,
    as many of each as the greedy search finds, together ``total_rank`` over layers, heads, keys and values.

    Projections start as principal components and are trained for ``max_steps``; 0 leaves them as they are. The search
    takes ``interval`` coordinates at a time from ``update_num`` heads at a time, and leaves every head as many.
    """

    name = "matryoshkakv"

    key_truncate_index: int = 64
    value_truncate_index: int = 64
    total_rank: int | None = None
    max_steps: int = 150
    unitary_transform_lr: float = 1e-2
    soft_target_loss_weight: float = 1.0
    ce_loss_weight: float = 0.0
    train_batch_size: int = 2
    seed: int = 0
    interval: int = 4
    update_num: int = 12
    num_samples: int = 2
    spaces: tuple[Subspaces, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        expect(min(self.key_truncate_index, self.value_truncate_index) > 0, "truncate indices have to be positive")
        expect(min(self.interval, self.update_num) > 0, "interval and update_num have to be positive")
        expect(self.max_steps >= 0, f"max_steps is {self.max_steps}, expected 0 or more")

    @property
    def lesson(self) -> tuple:
        return tuple(getattr(self, knob.name) for knob in fields(self) if knob.repr and knob.name not in RANKS)

    def studied(self, model: PreTrainedModel, rows: torch.Tensor) -> "Found":
        return Found(self, model, rows)

    def taught(self, found: "Found") -> Self:
        full = found.full_ranks()
        if self.total_rank is None:
            each = torch.tensor([self.key_truncate_index, self.value_truncate_index])
            ranks = each[:, None, None].expand_as(full)
        else:
            ranks = ranks_after(found.cuts, full, self.interval, self.total_rank)
        expect(bool((ranks <= full).all()), f"a head has {int(full.max())} numbers")
        return replace(self, spaces=tuple(truncated(found.directions, ranks)))

    def store(self, layer: Layer) -> Store:
        expect(bool(self.spaces), "matryoshkakv has to be calibrated first")
        return ProjectedStore(self.spaces[layer.index], layer)


class Found:
    """Projections of a model, trained if the method says so, and the order in which heads can spare coordinates."""

    def __init__(self, method: MatryoshkaKV, model: PreTrainedModel, rows: torch.Tensor) -> None:
        self.method, self.model, self.rows = method, model, rows
        found = [(principal(keys), principal(values)) for keys, values in keys_and_values(model, rows)]
        sides = [torch.stack(side) for side in zip(*found, strict=True)]
        self.directions = torch.stack(sides)  # [2, layers, kv_heads, head_dim, head_dim], keys and values
        if method.max_steps:
            training = Training(
                max_steps=method.max_steps,
                lr=method.unitary_transform_lr,
                soft_target_loss_weight=method.soft_target_loss_weight,
                ce_loss_weight=method.ce_loss_weight,
                batch=method.train_batch_size,
                seed=method.seed,
            )
            self.directions = distilled(model, rows, self.directions, training)

    def full_ranks(self) -> torch.Tensor:
        """Of every head ``[2, layers, kv_heads]``."""
        return torch.full(self.directions.shape[:3], self.directions.shape[-1])

    @cached_property
    def cuts(self) -> list[Cut]:
        """Searched for when it is first asked for."""
        rows = self.rows[: self.method.num_samples]
        return searched(self.model, rows, self.directions, self.method.interval, self.method.update_num)


def truncated(directions: torch.Tensor, ranks: torch.Tensor) -> list[Subspaces]:
    """Per layer the leading ``ranks [2, layers, kv_heads]`` of ``directions [2, layers, kv_heads, head_dim,
    head_dim]``. Heads are side by side in one subspace of all of them, since their ranks differ.
    """
    sides = [
        [torch.block_diag(*(d[:, :rank] for d, rank in zip(heads, kept, strict=True)))[None] for heads, kept in layers]
        for layers in (zip(*side, strict=True) for side in zip(directions, ranks.tolist(), strict=True))
    ]
    return [Subspaces(keys, values) for keys, values in zip(*sides, strict=True)]


def principal(x: torch.Tensor) -> torch.Tensor:
    """Directions ``[kv_heads, head_dim, head_dim]`` of ``x [rows, kv_heads, tokens, head_dim]``, strongest first.

    Of second moments: no mean is subtracted, as it would have to be added again.
    """
    heads = x.transpose(0, 1).flatten(1, 2).double()
    return torch.linalg.eigh(heads.mT @ heads).eigenvectors.flip(-1).float()
