"""What a rank rule is: a file in ``rules/`` that says what it needs and what it costs, and chooses."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch

from offline_compress.factors import layer_views
from offline_compress.factors.layer_views import LayerViews
from offline_compress.plan import Plan
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import TierFractions

# how much more than the mean a rule is taken to give the projection that gets most; what it will give is not known
SEARCHED_SPREAD = 1.25


class Needs(NamedTuple):
    """Of calibration data: how many samples of text there should be, and of how many inputs are kept at every layer.

    ``views`` says that the rule looks at the views of all layers before anything is written.
    """

    samples: int = 0
    kept: int = 0
    views: bool = False


class Calibration(NamedTuple):
    """What a rule may look at: all samples ``[samples, seqlen]``, None without, and one view after the other."""

    tokens: torch.Tensor | None
    views: LayerViews

    def first(self, count: int) -> torch.Tensor:
        """At most ``count`` samples. Raises ValueError where there are none, which a rule's ``needs`` prevents."""
        if self.tokens is None:
            raise ValueError("the rule looks at samples that it did not ask for")
        return self.tokens[:count]


@dataclass(frozen=True)
class Chosen:
    """Ranks of every layer, what ``palu_report.json`` says of the choice, and tiers where the rule chooses them."""

    ranks: list[KV[int]]
    report: dict[str, Any] = field(default_factory=dict)
    tiers: KV[TierFractions] | None = None


class Rule(ABC):
    """A rule without what it does not say needs nothing and refuses nothing."""

    final: ClassVar[bool] = False  # whether ranks follow from the options
    whole_model: ClassVar[bool] = False  # whether the whole model is in memory meanwhile

    def refusal(self, plan: Plan) -> str | None:
        """A sentence about options that the rule does not go with."""
        return None

    def needs(self, plan: Plan) -> Needs:
        return Needs()

    def peak_bytes(self, plan: Plan, samples: int) -> int:
        """The most memory that choosing needs beside the views, where there are ``samples``."""
        return 0

    def disk_bytes(self, plan: Plan) -> int:
        """What choosing writes beside the views."""
        return 0

    def likely_ranks(self, plan: Plan, uniform: KV[int]) -> KV[int]:
        """Of K and of V the largest that some layer may get, before it is known."""
        return KV(
            *(min(full, round(SEARCHED_SPREAD * rank)) for full, rank in zip(plan.full_ranks, uniform, strict=True))
        )

    @abstractmethod
    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        """The ranks; goes on with what ``journal`` has of a run that was killed."""


class Passed(NamedTuple):
    """Samples that there should be, that go through the layers, and whose inputs are kept there."""

    wanted: int
    passed: int
    kept: int


def samples_of(plan: Plan, rule: Rule) -> Passed:
    """For the rule, and for what is written."""
    needs = rule.needs(plan)
    kept = max(plan.kept_samples, needs.kept)
    passed = plan.options.whiten_samples if plan.needs_whitening else kept
    return Passed(max(passed, needs.samples), passed, kept)


def view_peak_bytes(plan: Plan, rule: Rule, samples: int) -> int:
    """The most that making the view of a layer needs, where there are ``samples``."""
    _, passed, kept = samples_of(plan, rule)
    return layer_views.peak_bytes(plan, min(samples, passed), min(samples, kept))
