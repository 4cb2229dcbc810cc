"""Which of many cases the fast suite runs: enough to show each value, the rest only in ``make test-all``."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest

fast_only = False  # set by tests/conftest.py where ``-m "not slow"`` leaves slow tests out


def diagonal(**axes: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrizes with every combination of named values; those beyond one for each value are slow.

    The i-th fast case takes the i-th value of every axis, from the start again where an axis is over.
    """
    names = [list(axis) for axis in axes.values()]
    fast = {tuple(axis[index % len(axis)] for axis in names) for index in range(max(map(len, names)))}
    cases = []
    for chosen in product(*names):
        values = [axis[name] for axis, name in zip(axes.values(), chosen, strict=True)]
        marks = () if chosen in fast else pytest.mark.slow
        cases.append(pytest.param(*values, id="-".join(chosen), marks=marks))
    return pytest.mark.parametrize(tuple(axes), cases)


def few(cases: Mapping[str, Any], *fast: str) -> list[Any]:
    """All cases by name, of which those that ``fast`` does not name are slow."""
    assert not set(fast) - set(cases), f"no such cases: {set(fast) - set(cases)}"
    return [pytest.param(case, id=name, marks=() if name in fast else pytest.mark.slow) for name, case in cases.items()]


def few_names(cases: Mapping[str, Any], *fast: str) -> list[Any]:
    """The same for tests that take the name."""
    return few({name: name for name in cases}, *fast)


def examples(fast: int, all_of_them: int) -> int:
    """How many examples hypothesis tries."""
    return fast if fast_only else all_of_them
