"""Checks are exceptions: no ``assert`` stands in the packages, and ``python -O`` refuses the same input.

A check that an ``assert`` makes is gone under ``python -O``. pytest's own assertions are too, so the bad input of
``tests/support/bad_inputs.py`` goes through a process of its own there, whose answers are compared here.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bad_inputs import CASES, answers

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("palu_vllm", "offline_compress") for path in sorted((ROOT / package).rglob("*.py"))]


def asserts(source: str) -> list[int]:
    """Lines of ``assert`` statements; ``tl.static_assert`` is a call, which the compiler of a kernel makes."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def test_an_assert_would_be_found():
    assert asserts("tl.static_assert(x)\nif y:\n    assert y") == [3]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_statement(path):
    assert not asserts(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_bad_input_is_refused_alike_without_assertions(palu, dense, tmp_path):
    models = [str(palu()), str(dense())]
    command = [sys.executable, "-O", "-m", "tests.support.bad_inputs", *models, str(tmp_path / "optimized")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-4000:]
    optimized = json.loads(ended.stdout.splitlines()[-1])
    assert optimized.pop("assertions") == "off"
    expected = answers(*models, str(tmp_path / "plain"))
    assert expected.pop("assertions") == "on"
    assert optimized.keys() == expected.keys() == CASES.keys()
    for case, (kind, sentence) in expected.items():
        assert optimized[case] == [kind, sentence], case
        assert kind == CASES[case].kind and CASES[case].words in sentence, (case, kind, sentence)
        assert "\n" not in sentence
