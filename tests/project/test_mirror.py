"""Tests mirror the tree: who looks for the tests of a module finds them under its own path, and the other way round."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MOST_FILES = 15  # of code in one folder
ELSEWHERE = {  # test files of no single module, and why
    "palu_vllm/test_vllm_contract.py": "what the whole package takes of vLLM",
}
FILES = [
    file.relative_to(TESTS)
    for package in ("palu_vllm", "offline_compress", "benchmarks")
    for file in sorted((TESTS / package).rglob("test_*.py"))
]
FOLDERS = sorted({file.parent.relative_to(ROOT) for file in TESTS.rglob("*.py")})


def subjects(folder: Path) -> set[str]:
    """Returns what a test file beside the tests of ``folder`` may be about: its modules, packages and itself."""
    inside = {
        path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    return inside | {folder.name}


def is_about(file: Path, subject: str) -> bool:
    """Whether ``test_subject.py``, or ``test_subject_aspect.py`` where one subject has several files."""
    return f"{file.stem}_".startswith(f"test_{subject}_")


@pytest.mark.parametrize("file", [file for file in FILES if str(file) not in ELSEWHERE], ids=str)
def test_a_test_file_is_named_after_a_module_or_package(file):
    assert (ROOT / file.parent).is_dir(), f"{file.parent} is tested and does not exist"
    names = subjects(file.parent)
    assert any(is_about(file, name) for name in names), f"{file} names none of {sorted(names)}"


def test_the_exceptions_exist():
    assert set(ELSEWHERE) <= set(map(str, FILES))


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_folders_are_small(folder):
    code = [file.name for file in (ROOT / folder).glob("*.py") if file.name != "__init__.py"]
    assert len(code) <= MOST_FILES, f"{folder} has {len(code)} files of code"


@pytest.mark.parametrize(
    ("name", "subject", "expected"),
    [
        ("test_plan.py", "plan", True),
        ("test_plan_of_rows.py", "plan", True),
        ("test_planner.py", "plan", False),
        ("test_replan.py", "plan", False),
    ],
)
def test_names_are_compared_by_whole_words(name, subject, expected):
    assert is_about(Path(name), subject) is expected
