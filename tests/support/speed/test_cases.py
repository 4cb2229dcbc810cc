"""The fast suite sees every value of every axis, the whole suite every combination."""

import pytest

from tests.support.speed.cases import diagonal, few

AXES = {"letter": dict(zip("abcde", "abcde", strict=True)), "number": {"1": 1, "2": 2}}


def is_fast(case) -> bool:
    return all(mark.name != "slow" for mark in case.marks)


def test_a_diagonal_shows_every_value_once_and_keeps_all_combinations():
    names, cases = diagonal(**AXES).args
    assert names == ("letter", "number") and len(cases) == 10
    fast = [case.values for case in cases if is_fast(case)]
    assert {letter for letter, _ in fast} == set("abcde") and {number for _, number in fast} == {1, 2}
    assert len(fast) == 5 and [case.id for case in cases][:2] == ["a-1", "a-2"]


def test_few_marks_the_others():
    cases = few({"a": 1, "b": 2}, "b")
    assert [(case.id, case.values, is_fast(case)) for case in cases] == [("a", (1,), False), ("b", (2,), True)]
    with pytest.raises(AssertionError, match="no such cases"):
        few({"a": 1}, "b")
