"""MatryoshkaKV's greedy search: which head can spare some of its coordinates with the least change of what the model
makes of the text.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from benchmarks.methods.attention import methods_attention
from benchmarks.methods.interface import expect
from benchmarks.methods.matryoshka_training import masked, projected_cache
from benchmarks.methods.prompts import Prompt

MOST_NEW = 32  # tokens after a prompt that judge


class Cut(NamedTuple):
    """A head that gives up coordinates: keys are side 0, values side 1."""

    side: int
    layer: int
    head: int


def greedy_cuts(
    hidden: Callable[[torch.Tensor], torch.Tensor], full: torch.Tensor, interval: int, update_num: int
) -> list[Cut]:
    """The order in which heads give up ``interval`` coordinates each, from ``full [2, layers, kv_heads]`` until each
    has ``interval`` or fewer left.

    In every round each head's cut is tried alone, and those ``update_num`` are made that change ``hidden(ranks)``
    least, relative to what it is with the ranks of the round.
    """
    ranks, cuts = full.clone(), []
    while candidates := [Cut(*place) for place in (ranks > interval).nonzero().tolist()]:
        now, errors = hidden(ranks), []
        for cut in candidates:
            tried = ranks.clone()
            tried[cut] = max(interval, int(tried[cut]) - interval)
            errors.append(((hidden(tried) - now).norm() / now.norm()).item())
        ordered = sorted(zip(errors, candidates, strict=True))
        for _, cut in ordered[:update_num]:
            ranks[cut] = max(interval, int(ranks[cut]) - interval)
            cuts.append(cut)
    return cuts


def ranks_after(cuts: list[Cut], full: torch.Tensor, interval: int, total: int) -> torch.Tensor:
    """Ranks ``[2, layers, kv_heads]`` whose sum is exactly ``total``: the last cut is as small as it has to be.

    Raises ValueError for a total that is above all of ``full`` or below what the cuts leave.
    """
    ranks = full.clone()
    left = int(full.sum()) - total
    expect(left >= 0, f"total_rank is {total}, and all heads together have {int(full.sum())}")
    for cut in cuts:
        part = min(left, interval, int(ranks[cut]) - interval)
        ranks[cut] -= part
        left -= part
    expect(left == 0, f"total_rank is {total}, and the search leaves {int(ranks.sum())} at least")
    return ranks


@torch.inference_mode()
def searched(
    model: PreTrainedModel, rows: torch.Tensor, directions: torch.Tensor, interval: int, update_num: int
) -> list[Cut]:
    """``greedy_cuts`` of ``directions [2, layers, kv_heads, head_dim, head_dim]``, judged by the last hidden states of
    the newest tokens of ``rows``, which read all before them as projected.
    """
    prompts = [Prompt(model, row, torch.float32) for row in rows]
    length = rows.shape[1] - min(MOST_NEW, rows.shape[1] // 4)

    def hidden(ranks: torch.Tensor) -> torch.Tensor:
        cache = projected_cache(model, prompts, length, masked(directions, ranks))
        return model.get_decoder()(rows[:, length:], past_key_values=cache).last_hidden_state

    full = torch.full(directions.shape[:3], directions.shape[-1])
    with methods_attention(model):
        return greedy_cuts(hidden, full, interval, update_num)
