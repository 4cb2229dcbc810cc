"""The rank rules, one file each, found by their names in ``offline_compress/searches.py``."""

from importlib import import_module

from offline_compress.plan import Plan
from offline_compress.ranks.rule import Rule
from offline_compress.searches import UNIFORM


def rule_named(name: str) -> Rule:
    """``RULE`` of the module of that name in this package."""
    rule: Rule = import_module(f"{__name__}.{name}").RULE
    return rule


def rule_of(plan: Plan) -> Rule:
    """The rule that the options ask for; where nothing is truncated there is nothing to choose."""
    return rule_named(plan.search if plan.truncates else UNIFORM)
