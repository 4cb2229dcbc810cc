"""``--search energy`` gives ranks to those that would discard most without them.

The error of a projection at a rank is its discarded energy, the sum of the squared singular values that the objective
cuts off. With ``--objective weighted`` those of K and V of all layers are one quantity, the squared change of what
attention adds to the residual stream. Energies fall convexly with rank, so that giving each step to the projection that
saves most per number of the cache is exact where every step costs the same. Where K and V are grouped differently a
step of the one costs more, and what is left when no more of them fits goes to the other. With a key cost c a number of
K must save 1 + c times what one of V saves.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from offline_compress.factors.layer_views import LayerView
from offline_compress.model.access import KEY, VALUE
from offline_compress.plan import Plan
from offline_compress.rank_steps import budget, units_and_costs
from offline_compress.ranks.rule import Calibration, Chosen, Needs, Rule
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV, flattened, paired
from palu_vllm.format.shape import rank_step


def ranks_by_energy(energies: Sequence[torch.Tensor], full_ranks: Sequence[int], ratio: float) -> list[int]:
    """The rank of every matrix: least sum of ``energies[matrix][rank]``, as much cache in all as the ratio says.

    Ranks are multiples of a step, at least one step each. Ranks that would save nothing are not given out.
    """
    steps = [rank_step(full) for full in full_ranks]
    _, costs = units_and_costs(full_ranks)
    saved = [-energy[step::step].diff() / cost for energy, step, cost in zip(energies, steps, costs, strict=True)]
    gains_of_steps = sorted(
        (-gain, number, matrix)
        for matrix, gains in enumerate(saved)
        for number, gain in enumerate(gains.tolist())
        if gain > 0
    )
    left = budget(full_ranks, ratio) - sum(costs)
    taken: Counter[int] = Counter()
    for _, _, matrix in gains_of_steps:
        if costs[matrix] <= left:
            left -= costs[matrix]
            taken[matrix] += 1
    return [step * (1 + taken[matrix]) for matrix, step in enumerate(steps)]


class Energy(Rule):
    """Looks at the energies of all layers before the first is written."""

    def needs(self, plan: Plan) -> Needs:
        return Needs(views=True)

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        views = data.views.behind(len(journal.layers()))

        def measured(layer: int) -> dict[str, Any]:
            return {"energies": [energy.tolist() for energy in energies_of(next(views))]}

        entries = journal.over_layers(plan.num_layers, measured, lambda layer, _: told(plan, layer, tell))
        return least_energy(plan, [entry["energies"] for entry in entries], [KV(1.0, 1.0)] * plan.num_layers)


def energies_of(view: LayerView) -> KV[torch.Tensor]:
    """What every rank of a layer discards."""
    key, value = view.objectives
    return KV(key.discarded_energy(view.weight(KEY)), value.discarded_energy(view.weight(VALUE)))


def told(plan: Plan, layer: int, tell: OnEvent) -> None:
    tell({"event": "energy", "number": layer, "of": plan.num_layers})


def least_energy(plan: Plan, found: Sequence[Sequence[list[float]]], sensitivities: Sequence[KV[float]]) -> Chosen:
    """The ranks that discard least of the energies ``found``, of K and of V of every layer, times ``sensitivities``.

    Those of a layer that reads another's latents are its own projections', which are not written.
    """
    energies = [KV(*(torch.tensor(side, dtype=torch.float64) for side in layer)) for layer in found]
    weighed = [
        KV(energy.key * own.key / (1 + plan.options.k_cost), energy.value * own.value)
        for energy, own in zip(energies, sensitivities, strict=True)
    ]
    full_ranks = flattened([plan.full_ranks] * len(plan.caching_layers))
    ranks = ranks_by_energy(flattened(plan.of_caching(weighed)), full_ranks, plan.options.rank_ratio)
    of_layers = plan.for_all(paired(ranks))
    lost = [
        KV(energy.key[rank.key].item(), energy.value[rank.value].item())
        for energy, rank in zip(energies, of_layers, strict=True)
    ]
    report = {
        "discarded_energy_k": [layer.key for layer in lost],
        "discarded_energy_v": [layer.value for layer in lost],
        "sensitivity_k": [layer.key for layer in sensitivities],
        "sensitivity_v": [layer.value for layer in sensitivities],
    }
    return Chosen(of_layers, {"rank_search": report})


RULE = Energy()
