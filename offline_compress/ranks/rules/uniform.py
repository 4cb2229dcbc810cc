"""``--search uniform`` gives every projection the same fraction of its full rank."""

from offline_compress.plan import Plan
from offline_compress.ranks.allocation import uniform_ranks
from offline_compress.ranks.rule import Calibration, Chosen, Rule
from offline_compress.run.journal import Journal
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV


class Uniform(Rule):
    """Ranks follow from the options."""

    final = True

    def likely_ranks(self, plan: Plan, uniform: KV[int]) -> KV[int]:
        return uniform

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        return Chosen(uniform_ranks(plan))


RULE = Uniform()
