"""Next-token training of the parameters that are not frozen: AdamW with a cosine schedule, in float32."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from offline_compress.run.errors import CompressionError
from offline_compress.run.progress import OnEvent


class Schedule(NamedTuple):
    """How long and how fast: ``steps`` of ``batch_size`` rows, the learning rate falling to zero along a cosine."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int


def batches(rows: int, schedule: Schedule) -> Iterator[torch.Tensor]:
    """Indices ``[batch_size]`` for every step: the rows in an order of their own in every pass."""
    chooser = torch.Generator().manual_seed(schedule.seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(schedule.steps):
        while len(waiting) < schedule.batch_size:
            waiting = torch.cat([waiting, torch.randperm(rows, generator=chooser)])
        chosen, waiting = waiting.split([schedule.batch_size, len(waiting) - schedule.batch_size])
        yield chosen


def train(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    tokens: torch.Tensor,
    schedule: Schedule,
    on_event: OnEvent,
) -> list[float]:
    """Trains ``parameters`` on ``tokens [rows, length]`` int64; returns the loss of every step, in nats per token.

    Raises CompressionError where the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=0.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, schedule.steps))
    losses: list[float] = []
    model.train()
    for chosen in batches(len(tokens), schedule):
        started, batch = time.monotonic(), tokens[chosen]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise CompressionError(f"the loss of step {len(losses)} is not finite; give a smaller --lr.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        speed = round(batch.numel() / (time.monotonic() - started))
        event = {"event": "step", "number": len(losses) - 1, "of": schedule.steps}
        on_event(event | {"loss": round(losses[-1], 4), "tokens_per_second": speed})
    model.eval()
    return losses
