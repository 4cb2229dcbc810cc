import pytest

from benchmarks.methods.__main__ import listing
from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.registry import METHODS, described, knobs_of, parse_method
from tests.benchmarks.methods.cases import CASES


def test_every_method_is_a_case_of_the_tests_of_all():
    assert {type(method) for method in CASES.values()} == set(METHODS.values())


@pytest.mark.parametrize("case", CASES)
def test_a_method_is_read_as_it_is_written(case):
    assert parse_method(described(CASES[case])) == CASES[case]


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_a_method(name):
    assert described(parse_method(name)) == name


def test_what_cannot_be_is_refused():
    for text, words in (
        ("kvi", "unknown method"),
        ("kivi:bits=2", "no knob"),
        ("kivi:k_bits=two", "expected int"),
        ("gear:stream=yes", "True or False"),
        ("kivi:group_size=48", "multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_method(text)
    assert parse_method("kivi:k_bits=4") == KIVI(k_bits=4)


def test_list_prints_every_method_and_knob():
    text = listing()
    for name, method in METHODS.items():
        assert f"\n{name}: " in f"\n{text}"
        assert all(f"{knob}=" in text for knob in knobs_of(method))
