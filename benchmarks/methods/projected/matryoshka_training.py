"""MatryoshkaKV's training: projections stay orthogonal while the model that reads truncated keys and values learns to
say what the dense one says. Ranks are drawn anew at every step and for every head, so that any prefix is trained.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import orthogonal
from transformers import DynamicCache, PreTrainedModel

from benchmarks.methods.compare.progress import Progress
from benchmarks.methods.harness.attention import methods_attention
from benchmarks.methods.harness.calibration import differentiable, keys_and_values

RATES = 8  # ranks are drawn among as many equal parts of a head
MOST_NEW = 128  # tokens after a prompt that a step learns from
REPORTS = 5  # lines about a training


@dataclass(frozen=True)
class Training:
    """How long, and what counts: the divergence from the dense model and the loss on the text itself."""

    max_steps: int
    lr: float
    soft_target_loss_weight: float
    ce_loss_weight: float
    batch: int
    seed: int


class Projections(nn.Module):
    """``directions [2, layers, kv_heads, head_dim, head_dim]`` of keys and values: orthogonal, and exactly those given
    at first.
    """

    def __init__(self, directions: torch.Tensor) -> None:
        super().__init__()
        self.directions = nn.Parameter(directions.clone())
        orthogonal(self, "directions", orthogonal_map="cayley")


def leading(directions: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """``directions [..., head_dim, head_dim]`` with zeros for those beyond ``ranks [...]``, as good as left out."""
    kept = torch.arange(directions.shape[-1], device=directions.device) < ranks[..., None]
    return directions * kept[..., None, :]


def filled_cache(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> DynamicCache:
    """transformers' own cache of the keys and values ``[rows, kv_heads, tokens, head_dim]`` of each layer."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys.to(dtype), values.to(dtype), layer)
    return cache


class Teacher:
    """Rows of text: keys and values of the dense model in every layer, and what it predicts."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, rows: torch.Tensor) -> None:
        self.rows, self.pairs = rows, keys_and_values(model, rows)
        logits = [model(row[None], use_cache=False).logits[0] for row in rows]
        self.log_probabilities = torch.stack(logits).log_softmax(-1)  # [rows, tokens, vocabulary]

    def loss(
        self, model: PreTrainedModel, which: torch.Tensor, span: slice, kept: torch.Tensor, form: Training
    ) -> torch.Tensor:
        """Of the tokens of ``span`` in the rows ``which``, which read all before them as the directions ``kept`` [2,
        layers, kv_heads, head_dim, head_dim] give them back.
        """
        sides = zip(self.pairs, zip(*kept, strict=True), strict=True)
        prefix = (which, slice(None), slice(None, span.start))
        layers = ((k[prefix] @ u @ u.mT, v[prefix] @ w @ w.mT) for (k, v), (u, w) in sides)
        cache = filled_cache(layers, model.dtype)
        found = model(self.rows[which, span], past_key_values=cache).logits.log_softmax(-1)
        dense = self.log_probabilities[which, span]
        divergence = (dense.exp() * (dense - found)).sum(-1).mean()
        labels = self.rows[which, span.start + 1 : span.stop + 1]
        hard = cross_entropy(found.flatten(0, 1), labels.flatten())
        return form.soft_target_loss_weight * divergence + form.ce_loss_weight * hard


def distilled(model: PreTrainedModel, rows: torch.Tensor, directions: torch.Tensor, form: Training) -> torch.Tensor:
    """``directions [2, layers, kv_heads, head_dim, head_dim]`` after training on ``rows [rows, tokens]``; the model's
    weights stay as they are.
    """
    draw = torch.Generator().manual_seed(form.seed)
    tokens, head_dim = rows.shape[1], directions.shape[-1]
    new = min(MOST_NEW, tokens // 4)
    with differentiable(model), methods_attention(model, "sdpa"):
        teacher, projections = Teacher(model, rows), Projections(directions)
        optimizer = torch.optim.Adam(projections.parameters(), lr=form.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, form.max_steps)
        progress = Progress(min(REPORTS, form.max_steps))
        for step in range(form.max_steps):
            which = torch.randperm(len(rows), generator=draw)[: form.batch]
            start = int(torch.randint(tokens // 4, tokens - new, (1,), generator=draw))
            ranks = (1 + torch.randint(RATES, directions.shape[:3], generator=draw)) * head_dim // RATES
            kept = leading(projections.directions, ranks)
            loss = teacher.loss(model, which, slice(start, start + new), kept, form)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(projections.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) * progress.total // form.max_steps > progress.at:
                progress.step(f"training projections, loss {loss.item():.3f}", kept=False)
        return projections.directions.detach()
