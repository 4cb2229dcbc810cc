"""MatryoshkaKV's rule (Lin et al., 2024, arXiv 2410.14731): ``--search matryoshka``, ranks that fall step by step.

``greedy.py`` has the algorithm, ``lowered_model.py`` the model whose answers it asks for.
"""

import torch

from offline_compress.calibration.activations import activation_file
from offline_compress.calibration.statistics import KEPT_TOKENS, kept_tokens
from offline_compress.factors.layer import peak_bytes as writing_bytes
from offline_compress.factors.layer_views import LayerViews
from offline_compress.model.access import LayerRunner
from offline_compress.model.source import READING_BYTES
from offline_compress.plan import Plan
from offline_compress.ranks.greedy import greedy_ranks, report
from offline_compress.ranks.lowered_model import LoweredModel, NestedProjection, nested
from offline_compress.ranks.rule import Calibration, Chosen, Needs, Rule, samples_of, view_peak_bytes
from offline_compress.run.journal import Journal
from offline_compress.run.memory import release_freed_memory
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV, flattened, paired

SAMPLES = 2  # that pass through the model at every step
FLOAT32 = 4


class Matryoshka(Rule):
    """Holds the factors of all projections at full rank, in float32."""

    def refusal(self, plan: Plan) -> str | None:
        if not (plan.options.share_layers or plan.options.share_map):
            return None
        return (
            "--search matryoshka lowers ranks of every layer, and layers that share have none of their own; "
            "give another --search, or leave --share-layers and --share-map out."
        )

    def needs(self, plan: Plan) -> Needs:
        return Needs(samples=SAMPLES, views=True)

    def peak_bytes(self, plan: Plan, samples: int) -> int:
        """The factors of all layers, and beside them one layer's reading, view or decomposition."""
        sides = plan.groupings
        numbers = sum(side.num_groups * side.full_rank * (plan.geometry.hidden_size + side.full_rank) for side in sides)
        kept = min(samples, samples_of(plan, self).kept)
        layer = max(view_peak_bytes(plan, self, samples), writing_bytes(plan, plan.full_ranks, kept), READING_BYTES)
        return FLOAT32 * numbers * plan.num_layers + layer

    def disk_bytes(self, plan: Plan) -> int:
        """Samples before every layer, behind the last, and what the dense model ends with."""
        return FLOAT32 * SAMPLES * kept_tokens(plan) * (plan.num_layers + 2) * plan.geometry.hidden_size

    def likely_ranks(self, plan: Plan, uniform: KV[int]) -> KV[int]:
        return plan.full_ranks

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        found = journal.remembered("greedy", lambda: _lowered(plan, data, journal, tell))
        return Chosen([KV(*layer) for layer in found["ranks"]], {"rank_search": found["search"]})


def _lowered(plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> dict:
    """The ranks, and what the report says of the steps.

    Factors are made anew where a run goes on; steps that ``journal`` has are not.
    """
    projections = _projections(plan, data.views, tell)
    runner = LayerRunner(plan.source, plan.config, plan.device)
    looked_at = data.first(SAMPLES)[:, :KEPT_TOKENS]
    with activation_file(journal.directory, (looked_at.shape[1], plan.geometry.hidden_size)) as file:
        model = LoweredModel(runner, projections, looked_at, file)
        full_ranks = flattened([plan.full_ranks] * plan.num_layers)
        ranks, steps = greedy_ranks(model, full_ranks, plan.options.rank_ratio, journal, tell)
    return {"ranks": paired(ranks), "search": report(steps)}


@torch.no_grad()
def _projections(plan: Plan, layer_views: LayerViews, tell: OnEvent) -> list[KV[NestedProjection]]:
    found: list[KV[NestedProjection]] = []
    views = layer_views.behind(0)
    for layer in range(plan.num_layers):
        found.append(nested(next(views)))
        release_freed_memory()
        tell({"event": "factors", "number": layer, "of": plan.num_layers})
    return found


RULE = Matryoshka()
