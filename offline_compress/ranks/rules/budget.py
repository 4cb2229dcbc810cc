"""Ranks, bits and tiers for a number of bytes per token: ``--target-compression`` and ``--bytes-per-token``.

The views of the layers give the errors of all ranks and tiers (``layer_errors.py``), from which ``storage_budget.py``
chooses. Where errors are predicted, the best choices are then tried in attention, at ranks near their own too, from
which they are chosen anew.
Beside it, in the same measure, stands what caches would cost that only quantize.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from offline_compress.factors.layer_views import view_bytes
from offline_compress.plan import Plan
from offline_compress.ranks.layer_errors import (
    COMPARED_SAMPLES,
    LayerErrors,
    Way,
    layer_errors,
    tried_errors,
)
from offline_compress.ranks.layer_errors import peak_bytes as comparing_bytes
from offline_compress.ranks.rule import Calibration, Chosen, Needs, Rule, samples_of
from offline_compress.ranks.storage_budget import Choice, Curve, choices
from offline_compress.ranks.storage_errors import PLAIN_BITS
from offline_compress.ranks.storage_grid import Grid, grids
from offline_compress.run.errors import CompressionError
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import HEADER_BYTES, TierFractions

SHOWN = 5  # of the choices that were considered
FINALISTS = 3  # of predicted choices that are tried
NEAR = 2  # ranks on either side of theirs that are tried too


class Budget(Rule):
    """The choice of least predicted error within the plan's budget."""

    def needs(self, plan: Plan) -> Needs:
        return Needs(samples=plan.options.whiten_samples, kept=COMPARED_SAMPLES, views=True)

    def peak_bytes(self, plan: Plan, samples: int) -> int:
        kept = min(samples, samples_of(plan, self).kept)
        return view_bytes(plan, kept) + comparing_bytes(plan, samples)

    def likely_ranks(self, plan: Plan, uniform: KV[int]) -> KV[int]:
        return uniform

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        """Raises CompressionError where nothing fits into the budget."""
        tried, budget = grids(plan), plan.budget_bytes or 0
        smallest = len(plan.caching_layers) * (tried.key.smallest_bytes + tried.value.smallest_bytes)
        if smallest > budget:
            raise CompressionError(
                f"the budget is {budget} bytes per token, the least that these options allow is {smallest}; give a "
                "smaller compression, or fewer bits."
            )
        layers = _errors(plan, tried, data, journal, tell)
        tables = [layer.tables for layer in plan.of_caching(layers)]
        curves = KV(
            _curves(tried.key, [table.key for table in tables]), _curves(tried.value, [table.value for table in tables])
        )
        found = [replace(choice, ranks=tuple(plan.for_all(choice.ranks))) for choice in choices(curves, budget)]
        if not plan.options.exhaustive:
            found = _tried(plan, tried, data, journal.section("finalists"), tell, found)
        return Chosen(list(found[0].ranks), {"budget": _report(plan, budget, found, layers)}, found[0].tiers)


def _errors(plan: Plan, tried: KV[Grid], data: Calibration, journal: Journal, tell: OnEvent) -> list[LayerErrors]:
    """Of every layer."""
    views = data.views.behind(len(journal.layers()))

    def measured(layer: int) -> dict[str, Any]:
        return {"errors": layer_errors(plan, tried, next(views)).as_lists()}

    def told(layer: int, _: dict[str, Any]) -> None:
        tell({"event": "probe", "number": layer, "of": plan.num_layers})

    return [LayerErrors.of(entry["errors"]) for entry in journal.over_layers(plan.num_layers, measured, told)]


def _tried(
    plan: Plan, grids: KV[Grid], data: Calibration, journal: Journal, tell: OnEvent, found: Sequence[Choice]
) -> list[Choice]:
    """The best choices, at ranks near their own that suit the errors in attention, best first, before the others."""
    finalists, views = found[:FINALISTS], data.views.behind(len(journal.layers()))
    ways = [_ways(grids, finalists, layer) for layer in range(plan.num_layers)]

    def measured(layer: int) -> dict[str, Any]:
        return {"errors": list(tried_errors(plan, grids, next(views), ways[layer]))}

    def told(layer: int, _: dict[str, Any]) -> None:
        tell({"event": "trial", "number": layer, "of": plan.num_layers})

    entries = journal.over_layers(plan.num_layers, measured, told)
    errors = [
        KV(*(dict(zip(own, side, strict=True)) for own, side in zip(layer, entry["errors"], strict=True)))
        for layer, entry in zip(ways, entries, strict=True)
    ]
    moved = [_moved(plan, grids, plan.of_caching(errors), choice) for choice in finalists]
    return [*sorted(moved, key=lambda choice: choice.predicted_error), *found[FINALISTS:]]


def _ways(grids: KV[Grid], finalists: Sequence[Choice], layer: int) -> KV[list[Way]]:
    """The ranks near those of any finalist, with its tiers, each once."""

    def side(number: int) -> list[Way]:
        own = [(choice.ranks[layer][number], choice.tiers[number]) for choice in finalists]
        return list(dict.fromkeys((rank, tiers) for at, tiers in own for rank in near(grids[number].ranks, at)))

    return KV(side(0), side(1))


def _moved(plan: Plan, grids: KV[Grid], errors: Sequence[KV[dict[Way, float]]], choice: Choice) -> Choice:
    """``choice``, or one with the same tiers at ranks near its own, by the errors that both have in attention."""
    own = plan.of_caching(choice.ranks)

    def curves(side: int) -> dict[TierFractions, Sequence[Curve]]:
        grid, tiers = grids[side], choice.tiers[side]
        ranks = [near(grid.ranks, layer[side]) for layer in own]
        return {
            tiers: [
                _curve(grid, some, tiers, [known[side][rank, tiers] for rank in some])
                for some, known in zip(ranks, errors, strict=True)
            ]
        }

    moved = choices(KV(curves(0), curves(1)), plan.budget_bytes or 0)[0]
    error = sum(known[side][layer[side], choice.tiers[side]] for layer, known in zip(own, errors, strict=True)
                for side in range(2))  # fmt: skip
    if error <= moved.predicted_error:
        return replace(choice, predicted_error=error)
    return replace(moved, ranks=tuple(plan.for_all(moved.ranks)))


def near(ranks: Sequence[int], own: int) -> Sequence[int]:
    """``own`` and as many as ``NEAR`` of the ``ranks`` on either side."""
    place = ranks.index(own)
    return ranks[max(0, place - NEAR) : place + NEAR + 1]


def _curve(grid: Grid, ranks: Sequence[int], tiers: TierFractions, errors: Sequence[float]) -> Curve:
    return Curve(tuple(ranks), tuple(grid.bytes(rank, tiers) for rank in ranks), tuple(errors))


def _curves(grid: Grid, errors: Sequence[torch.Tensor]) -> dict[TierFractions, Sequence[Curve]]:
    """For each tiers the curves of all layers from their tables ``[ranks, tiers]``."""
    found: dict[TierFractions, Sequence[Curve]] = {}
    for column, fractions in enumerate(grid.tiers):
        found[fractions] = [_curve(grid, grid.ranks, fractions, table[:, column].tolist()) for table in errors]
    return found


def _report(plan: Plan, budget: int, found: Sequence[Choice], layers: Sequence[LayerErrors]) -> dict[str, Any]:
    """The best choice of each pair of tiers, best first, and what plain bits per token and head would cost."""
    return {
        "bytes_per_token": budget,
        "predicted_error": found[0].predicted_error,
        "predicted_error_is": "squared change of what attention adds over the residual stream, summed over layers",
        "considered": [choice.report() for choice in found[:SHOWN]],
        "plain_bits_per_token_and_head": _plain(plan, budget, layers),
    }


def _plain(plan: Plan, budget: int, layers: Sequence[LayerErrors]) -> dict[str, dict[str, float]]:
    geometry = plan.geometry
    errors = torch.stack([layer.plain for layer in layers]).sum(0)
    plain: dict[str, dict[str, float]] = {}
    for bits, error in zip(PLAIN_BITS, errors.tolist(), strict=True):
        head = geometry.head_dim * bits / 8 + HEADER_BYTES  # nothing for alignment
        size = 2 * geometry.num_layers * geometry.num_kv_heads * head
        plain[f"int{bits}"] = {"bytes_per_token": size, "predicted_error": error, "fits": size <= budget}
    return plain


RULE = Budget()
