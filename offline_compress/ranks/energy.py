"""Ranks by what they discard: ``--search energy`` and ``--search sensitivity``.

The error of a projection at a rank is its discarded energy, the sum of the squared singular values that the objective
cuts off. With ``--objective weighted`` those of K and V of all layers are one quantity, the squared change of what
attention adds to the residual stream. Energies fall convexly with rank, so that giving each tile to the projection that
saves most per number of the cache is exact where every tile costs the same. Where K and V are grouped differently a
tile of the one costs more, and what is left when no more of them fits goes to the other. ``sensitivity`` multiplies
each projection's energies by a measured number first (``sensitivity.py``). With a key cost c a number of K must save
1 + c times what one of V saves.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from offline_compress.calibration.activations import remove_inputs
from offline_compress.factors.head_order import permuted
from offline_compress.factors.layer_views import LayerView, layer_views
from offline_compress.factors.objective import Objective
from offline_compress.model.access import KEY, VALUE
from offline_compress.plan import Plan
from offline_compress.ranks.allocation import budget, units_and_steps
from offline_compress.ranks.sensitivity import TruncationProbes, sensitivities, truncation_probes
from offline_compress.run.journal import Journal
from offline_compress.run.memory import release_freed_memory
from offline_compress.run.progress import OnEvent
from offline_compress.run.stopwatch import lap
from palu_vllm.format.shape import rank_step


@dataclass(frozen=True)
class RankSearch:
    """``ranks`` of K and of V per layer; ``energies`` and ``sensitivities`` of K0, V0, K1, V1, ...

    Those of a layer that reads another's latents are its own projections', which are not written.
    """

    ranks: tuple[list[int], list[int]]
    energies: tuple[torch.Tensor, ...]
    sensitivities: tuple[float, ...]

    def report(self) -> dict[str, Any]:
        """For ``palu_report.json``: energies that the chosen ranks discard, and what they were multiplied by."""
        chosen = [rank for pair in zip(*self.ranks, strict=True) for rank in pair]
        lost = [energy[rank].item() for energy, rank in zip(self.energies, chosen, strict=True)]
        return {
            "discarded_energy_k": lost[0::2],
            "discarded_energy_v": lost[1::2],
            "sensitivity_k": list(self.sensitivities[0::2]),
            "sensitivity_v": list(self.sensitivities[1::2]),
        }


def ranks_by_energy(energies: Sequence[torch.Tensor], full_ranks: Sequence[int], ratio: float) -> list[int]:
    """The rank of every matrix: least sum of ``energies[matrix][rank]``, as much cache in all as the ratio says.

    Ranks are multiples of the tile, at least one tile each. Ranks that would save nothing are not given out.
    """
    tiles = [rank_step(full) for full in full_ranks]
    _, costs = units_and_steps(full_ranks)
    saved = [-energy[tile::tile].diff() / cost for energy, tile, cost in zip(energies, tiles, costs, strict=True)]
    steps = sorted(
        (-gain, number, matrix)
        for matrix, gains in enumerate(saved)
        for number, gain in enumerate(gains.tolist())
        if gain > 0
    )
    left, taken = budget(full_ranks, ratio) - sum(costs), Counter()
    for _, _, matrix in steps:
        if costs[matrix] <= left:
            left -= costs[matrix]
            taken[matrix] += 1
    return [tile * (1 + taken[matrix]) for matrix, tile in enumerate(tiles)]


def search_ranks(plan: Plan, tokens: torch.Tensor | None, journal: Journal, on_event: OnEvent) -> RankSearch:
    """Ranks from one pass over the layers; ``tokens [samples, seqlen]``, None where the objective needs no data.

    The pass goes on behind the last layer in ``journal``; one that measures sensitivities begins again.
    """
    if plan.measures_sensitivity:
        found = journal.remembered("sensitivity", lambda: _measured(plan, tokens, journal, on_event))
    else:
        found = {"energies": _resumed(plan, tokens, journal, on_event)}
    energies = [torch.tensor(energy, dtype=torch.float64) for energy in found["energies"]]
    measured = found.get("sensitivities", [1.0] * len(energies))
    weighed = [
        energy * sensitivity / (1 if index % 2 else 1 + plan.options.k_cost)
        for index, (energy, sensitivity) in enumerate(zip(energies, measured, strict=True))
    ]
    ranks = ranks_by_energy(plan.of_caching(weighed), plan.full_ranks, plan.options.rank_ratio)
    return RankSearch(plan.for_all(ranks), tuple(energies), tuple(measured))


def _resumed(plan: Plan, tokens: torch.Tensor | None, journal: Journal, on_event: OnEvent) -> list[list[float]]:
    """Discarded energies of K0, V0, K1, V1, ..."""
    finished = [entry["energies"] for entry in journal.layers()]
    views = layer_views(plan, tokens, journal.directory, len(finished))
    for layer in range(len(finished), plan.geometry.num_layers):
        finished.append([energy.tolist() for energy in _energies(next(views), layer, None)])
        journal.add_layer(layer, {"energies": finished[-1], "seconds": lap()})
        _tell(plan, layer, on_event)
    remove_inputs(journal.directory)
    return [energy for pair in finished for energy in pair]


def _measured(plan: Plan, tokens: torch.Tensor, journal: Journal, on_event: OnEvent) -> dict[str, Any]:
    """The same energies, and sensitivities."""
    energies: list[torch.Tensor] = []
    views = layer_views(plan, tokens, journal.directory)
    with truncation_probes(plan, tokens, journal.directory) as probes:
        for layer in range(plan.geometry.num_layers):
            energies += _energies(next(views), layer, probes)
            _tell(plan, layer, on_event)
        measured = _sensitivities(plan, probes, energies)
    remove_inputs(journal.directory)
    return {"energies": [energy.tolist() for energy in energies], "sensitivities": measured}


def _tell(plan: Plan, layer: int, on_event: OnEvent) -> None:
    release_freed_memory()
    on_event({"event": "energy", "number": layer, "of": plan.geometry.num_layers})


def _sensitivities(plan: Plan, probes: TruncationProbes, energies: list[torch.Tensor]) -> list[float]:
    probed = [rank for pair in zip(*plan.uniform_ranks(), strict=True) for rank in pair]
    discarded = [energy[rank].item() for energy, rank in zip(energies, probed, strict=True)]
    return sensitivities(probes.divergences(), discarded)


def _energies(view: LayerView, layer: int, probes: TruncationProbes | None) -> list[torch.Tensor]:
    """Of K and of V; brings the probes behind the layer."""
    weights = [view.weight(layer, name) for name in (KEY, VALUE)]
    groups = [side.num_groups for side in (view.plan.key, view.plan.value)]
    if probes is not None:
        ranks = [side[layer] for side in view.plan.uniform_ranks()]
        cut = [_truncated(view, *each) for each in zip(weights, view.objectives, groups, ranks, strict=True)]
        probes.add(layer, *cut)
    sides = zip(view.objectives, weights, groups, strict=True)
    return [objective.discarded_energy(weight, count) for objective, weight, count in sides]


def _truncated(view: LayerView, weight: torch.Tensor, objective: Objective, num_groups: int, rank: int) -> torch.Tensor:
    """``weight`` at ``rank``, its heads in the model's own order, float32."""
    factors = objective.factors(weight, num_groups, rank)
    rebuilt = (factors.up.mT @ factors.down.unflatten(0, (num_groups, -1))).flatten(0, 1)
    own_order = sorted(range(len(view.order)), key=view.order.__getitem__)
    return permuted(rebuilt.float(), own_order)
