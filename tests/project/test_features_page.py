"""The page of features names tests that exist, and the README says of every feature what the page says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANSWERS = ("yes", "refused", "untested on GPU", "untested")
TEST = re.compile(r"`(tests/[\w/]+\.py)::([^`\[]+)(?:\[([^`]+)\])?`")


def rows(page: str) -> list[list[str]]:
    """The cells of the lines of a page's tables."""
    lines = [line.strip() for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


FEATURES = rows("docs/features.md")[2:]


def names_in(path: Path) -> set[str]:
    """``name`` and ``Class::name`` of all functions in a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside, prefix = (node.body, f"{node.name}::") if isinstance(node, ast.ClassDef) else ([node], "")
        found |= {prefix + item.name for item in inside if isinstance(item, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("row", FEATURES, ids=[row[0] for row in FEATURES])
def test_a_row_names_tests_that_exist(row):
    _, answer, named, _ = row
    tests = TEST.findall(named)
    assert answer in ANSWERS
    assert len(tests) == named.count(".py::"), "a test is not written `tests/path.py::name`"
    assert tests or answer.startswith("untested")
    for path, name, case in tests:
        assert name.split("::")[-1].startswith("test_") and name in names_in(ROOT / path)
        assert not case or re.search(f"[\"']{re.escape(case)}[\"']", (ROOT / path).read_text(encoding="utf-8"))


def test_the_readme_says_the_same():
    told = {row[0]: row[1].split(", ") for row in rows("README.md") if row[0] in ANSWERS}
    assert told == {answer: names for answer in ANSWERS if (names := [row[0] for row in FEATURES if row[1] == answer])}
