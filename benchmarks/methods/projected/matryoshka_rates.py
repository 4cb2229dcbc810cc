"""MatryoshkaKV's greedy search: which head can spare some of its coordinates with the least change of what the model
makes of the text.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from benchmarks.methods.harness.attention import methods_attention
from benchmarks.methods.harness.calibration import keys_and_values
from benchmarks.methods.harness.interface import expect
from benchmarks.methods.projected.matryoshka_training import filled_cache, leading

MOST_TOKENS = 384  # of a row
MOST_NEW = 32  # of those, after the prompt, that judge


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
    rows = rows[:, :MOST_TOKENS]
    length = rows.shape[1] - min(MOST_NEW, rows.shape[1] // 4)
    pairs = zip(*keys_and_values(model, rows), strict=True)
    sides = zip(pairs, directions, strict=True)
    coordinates = [[x[:, :, :length] @ u for x, u in zip(*side, strict=True)] for side in sides]

    @lru_cache(maxsize=4 * len(directions[0]))  # a trial differs from the last one in two layers or sides at most
    def rebuilt(side: int, layer: int, ranks: tuple[int, ...]) -> torch.Tensor:
        return coordinates[side][layer] @ leading(directions[side, layer], torch.tensor(ranks)).mT

    def hidden(ranks: torch.Tensor) -> torch.Tensor:
        kept = [[rebuilt(i, j, tuple(heads)) for j, heads in enumerate(side)] for i, side in enumerate(ranks.tolist())]
        cache = filled_cache(zip(*kept, strict=True), model.dtype)
        return model.get_decoder()(rows[:, length:], past_key_values=cache).last_hidden_state

    full = torch.full(directions.shape[:3], directions.shape[-1])
    with methods_attention(model, "sdpa"):
        return greedy_cuts(hidden, full, interval, update_num)
