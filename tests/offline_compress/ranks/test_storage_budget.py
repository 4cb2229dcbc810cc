"""The choice for a budget: never above it, the best there is at the points of the hull."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_compress.ranks.storage_budget import Curve, choices, widen
from palu_vllm.format.kv import KV

thousandths = st.integers(0, 10_000).map(lambda number: number / 1000)  # their differences per byte never underflow


@st.composite
def curves(draw, most: int = 3) -> list[Curve]:
    def one() -> Curve:
        points = draw(st.integers(1, 5))
        sizes = draw(st.lists(st.integers(1, 9), min_size=points, max_size=points))
        errors = sorted(draw(st.lists(thousandths, min_size=points, max_size=points)), reverse=True)
        return Curve(tuple(range(1, points + 1)), tuple(itertools.accumulate(sizes)), tuple(errors))

    return [one() for _ in range(draw(st.integers(1, most)))]


def total(values: list[Curve], chosen, field: str) -> float:
    return sum(getattr(curve, field)[i] for curve, i in zip(values, chosen, strict=True))


def optimum(values: list[Curve], budget: int) -> float:
    everything = itertools.product(*(range(len(curve.ranks)) for curve in values))
    return min(total(values, one, "errors") for one in everything if total(values, one, "bytes") <= budget)


@settings(max_examples=200)
@given(curves(), st.integers(0, 100))
def test_never_above_the_budget_and_at_most_one_step_from_the_best(values, budget):
    chosen = widen(values, budget)
    narrowest = total(values, [0] * len(values), "bytes")
    if budget < narrowest:
        assert chosen is None
        return
    assert total(values, chosen, "bytes") <= budget
    longest = max(curve.bytes[-1] - curve.bytes[0] for curve in values)
    assert total(values, chosen, "errors") <= optimum(values, max(narrowest, budget - longest)) + 1e-9


@settings(max_examples=200)
@given(curves())
def test_every_step_of_a_hull_gains_less_than_the_one_before(values):
    for curve in values:
        hull = curve.hull()
        gains = [curve.gain(start, end) for start, end in itertools.pairwise(hull)]
        assert hull[0] == 0 and all(gain > 0 for gain in gains)
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(gains))
        assert curve.errors[hull[-1]] == min(curve.errors)


@settings(max_examples=200)
@given(curves(), st.integers(0, 100))
def test_nothing_that_would_help_is_left_over(values, budget):
    chosen = widen(values, budget)
    for number, curve in enumerate(values if chosen else []):
        left = budget - total(values, chosen, "bytes")
        for end in range(chosen[number] + 1, len(curve.ranks)):
            costs = curve.bytes[end] - curve.bytes[chosen[number]]
            assert costs > left or curve.errors[end] >= curve.errors[chosen[number]]


def test_a_larger_budget_is_never_worse():
    values = [Curve((1, 2, 3), (2, 5, 7), (9.0, 4.0, 1.0)), Curve((1, 2), (1, 4), (8.0, 2.0))]
    errors = [total(values, widen(values, budget), "errors") for budget in range(3, 12)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 3.0


def test_tiers_are_chosen_together_with_ranks():
    few, many = ((1.0, 2),), ((1.0, 8),)
    keys = {few: [Curve((1, 2), (1, 2), (5.0, 4.0))], many: [Curve((1, 2), (4, 8), (2.0, 0.0))]}
    values = {few: [Curve((1, 2), (1, 2), (1.0, 0.9))], many: [Curve((1, 2), (4, 8), (0.9, 0.8))]}
    best, *others = choices(KV(keys, values), 9)
    assert (best.tiers, best.ranks) == (KV(many, few), (KV(2, 1),))
    assert (best.bytes_per_token, best.predicted_error) == (9, pytest.approx(1.0))
    assert [other.predicted_error for other in others] == sorted(other.predicted_error for other in others)
    assert len(others) == 3 and choices(KV(keys, values), 1) == []
