"""``--search fisher`` gives ranks in proportion to the mean Fisher information of each group (``by_group``).

The reference keeps a rank per group; this format has none, so that a projection gets the mean of its groups.
"""

import torch

from offline_compress.calibration.fisher import fisher_information, group_importance
from offline_compress.model.access import key_value_weights, num_parameters, whole_model
from offline_compress.plan import Plan
from offline_compress.ranks.allocation import Sharing, by_group, ranks_by_importance
from offline_compress.ranks.rule import Calibration, Chosen, Needs, Rule
from offline_compress.run.errors import CompressionError
from offline_compress.run.journal import Journal
from offline_compress.run.memory import resident_memory_bytes
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV, flattened, paired

FLOAT32 = 4


class Fisher(Rule):
    """Holds the whole model in float32."""

    whole_model = True

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def needs(self, plan: Plan) -> Needs:
        return Needs(samples=plan.options.fisher_samples)

    def peak_bytes(self, plan: Plan, samples: int) -> int:
        """The model, squared gradients, one sample's activations and logits with their gradients."""
        geometry, config = plan.geometry, plan.config
        matrices = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * geometry.hidden_size
        per_layer = 12 * geometry.hidden_size + 5 * config.intermediate_size
        per_token = geometry.num_layers * per_layer + 4 * config.vocab_size
        return FLOAT32 * (num_parameters(plan.source) + 2 * matrices + plan.seqlen * per_token)

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        tokens = data.first(plan.options.fisher_samples)
        importance = journal.remembered("fisher", lambda: _importance(plan, tokens, tell))
        return Chosen(ranks_by_importance(plan, [KV(*layer) for layer in importance], self._sharing))


def _importance(plan: Plan, tokens: torch.Tensor, tell: OnEvent) -> list[KV[list[float]]]:
    """Of the groups of K and of V of every layer."""
    model = whole_model(plan.source, plan.config, plan.device).requires_grad_(False)
    weights = [weight.requires_grad_() for weight in flattened(key_value_weights(model))]

    def logits_of(row: torch.Tensor) -> torch.Tensor:
        return model(input_ids=row[None], use_cache=False).logits[0]

    def on_sample(number: int) -> None:
        tell({"event": "fisher", "number": number, "of": len(tokens), "resident_bytes": resident_memory_bytes()})

    try:
        information = fisher_information(logits_of, weights, tokens.to(plan.device), on_sample)
    except ValueError as error:
        raise CompressionError(f"{error}; use --search uniform or other calibration data.") from error
    groups = plan.groupings.map(lambda side: side.num_groups)
    return [
        KV(group_importance(layer.key, groups.key), group_importance(layer.value, groups.value))
        for layer in paired(information)
    ]


RULE = Fisher(by_group)
