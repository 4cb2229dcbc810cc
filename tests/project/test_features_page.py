"""The pages of features name tests that exist, and the short page says of every feature what the long one says."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
ANSWERS = ("yes", "refused", "untested on GPU", "untested")
TEST = re.compile(r"`(tests/[\w/]+\.py)::([^`\[]+)(?:\[([^`]+)\])?`")


class Feature(NamedTuple):
    answer: str
    name: str
    text: str


def sections(page: str, mark: str) -> list[tuple[str, str]]:
    """The headings of one level and the text below each, up to the next heading of that level."""
    parts = re.split(rf"^{mark} (.+)$", page, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def features() -> list[Feature]:
    """Every heading of the long page, below the answer that it stands under."""
    page = (ROOT / "docs/reference/feature-tests.md").read_text(encoding="utf-8")
    return [Feature(answer, *section) for answer, below in sections(page, "##") for section in sections(below, "###")]


FEATURES = features()


def names_in(path: Path) -> set[str]:
    """``name`` and ``Class::name`` of all functions in a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside, prefix = (node.body, f"{node.name}::") if isinstance(node, ast.ClassDef) else ([node], "")
        found |= {prefix + item.name for item in inside if isinstance(item, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("feature", FEATURES, ids=[feature.name for feature in FEATURES])
def test_a_feature_names_tests_that_exist(feature):
    tests = TEST.findall(feature.text)
    assert feature.answer in ANSWERS
    assert len(tests) == feature.text.count(".py::"), "a test is not written `tests/path.py::name`"
    assert tests or feature.answer.startswith("untested")
    for path, name, case in tests:
        assert name.split("::")[-1].startswith("test_") and name in names_in(ROOT / path)
        assert not case or re.search(f"[\"']{re.escape(case)}[\"']", (ROOT / path).read_text(encoding="utf-8"))


def test_the_short_page_says_the_same():
    page = (ROOT / "docs/reference/features.md").read_text(encoding="utf-8")
    told = {answer: re.findall(r"^- (.+)$", below, re.MULTILINE) for answer, below in sections(page, "##")}
    told = {answer: names for answer, names in told.items() if answer in ANSWERS}
    expected = {answer: [one.name for one in FEATURES if one.answer == answer] for answer in ANSWERS}
    assert told == {answer: names for answer, names in expected.items() if names}


def test_the_readme_leads_there():
    assert "(docs/reference/features.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
