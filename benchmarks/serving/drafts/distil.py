"""Drafters of a model: its first layers, and these after they have learned the model's own predictions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.output import say

ROW, ROWS = 256, 8  # tokens of a row of text, and rows of a step
PEAK = 1e-3  # the learning rate, falling to nothing
SAID = 50  # steps


def first_layers(model: Path, layers: int) -> Any:
    """The model's first layers, its norm and its output projection."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    whole.model.layers = whole.model.layers[:layers]
    whole.config.num_hidden_layers = layers
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = whole.config.layer_types[:layers]
    return whole


def cut(model: Path, layers: int, out: Path, steps: int = 0, text: Path | None = None) -> Path:
    """Writes a checkpoint of the first ``layers``, distilled for ``steps`` on ``text``."""
    drafter = first_layers(model, layers)
    if steps and text:
        ids = AutoTokenizer.from_pretrained(model).encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
        teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        dtype = drafter.dtype
        distil(drafter.float(), teacher, torch.tensor(ids), steps)
        drafter.to(dtype)
    drafter.save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    return out


def batches(ids: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """``[ROWS, ROW]`` of text, anywhere in it. Raises ValueError for text that is shorter than a row."""
    if len(ids) <= ROW:
        raise ValueError(f"got a text of {len(ids)} tokens to distil on, expected more than {ROW}; give a longer one.")
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(ids) - ROW, (ROWS,), generator=generator)
        yield ids[starts[:, None] + torch.arange(ROW)]


def distil(drafter: Any, teacher: Any, ids: torch.Tensor, steps: int) -> list[float]:
    """Trains ``drafter`` to predict as ``teacher`` does, by KL; returns that of every step, in nats per token."""
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=PEAK)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    losses = []
    for step, rows in enumerate(batches(ids, steps)):
        with torch.no_grad():
            target = teacher(rows).logits.log_softmax(-1)
        found = drafter(rows).logits.log_softmax(-1)
        loss = torch.nn.functional.kl_div(found, target, log_target=True, reduction="none").sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        falling.step()
        losses.append(loss.item())
        if step % SAID == SAID - 1:
            say({"step": step + 1, "of": steps, "kl": round(sum(losses[-SAID:]) / SAID, 4)})
    return losses
