"""Which ``position_ids`` a cache of latents honours: it knows a token by its slot, and rotates its key by that."""

from typing import Any

import torch


def check_positions(position_ids: torch.Tensor, attention_mask: Any, cached: int) -> None:
    """Raises ValueError unless ``position_ids [batch, length]`` count the slots from ``cached`` on.

    They may begin at 0 behind the left padding of ``attention_mask [batch, slots]`` too, because rotary scores depend
    on distances only. What padding itself is given does not matter.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(position_ids)
    is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    slots = cached + torch.arange(position_ids.shape[1], device=position_ids.device)
    if not (_counts(position_ids, attention_mask, slots) if is_padding_mask else _has_no_gap(position_ids, slots)):
        raise ValueError(
            "position_ids leave out or repeat positions, but a cache of latents counts every token it holds; "
            "leave position_ids out, and pad on the left with an attention_mask."
        )


def _counts(position_ids: torch.Tensor, padding_mask: torch.Tensor, slots: torch.Tensor) -> bool:
    """Whether the attended positions of each row are their slots, or those behind the row's padding."""
    ahead, ignored = slots - position_ids, ~padding_mask[:, -len(slots) :].bool()
    padding = padding_mask.bool().int().argmax(1, keepdim=True)
    from_start, behind_padding = (((ahead == begin) | ignored).all(1) for begin in (torch.zeros_like(padding), padding))
    return bool((from_start | behind_padding).all())


def _has_no_gap(position_ids: torch.Tensor, slots: torch.Tensor) -> bool:
    """The same as far as it shows beside a finished mask, which ``generate`` makes for static caches.

    There, padding has positions 0 or 1.
    """
    follows = (position_ids.diff() == 1) | (position_ids[:, 1:] <= 1)
    return bool(follows.all() and (position_ids <= slots.clamp(min=1)).all())
