"""Every module of the product says what it is, in a first line that is a sentence."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for package in ("palu_vllm", "offline_compress")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_begins_with_a_sentence(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "it has no docstring"
    first = docstring.splitlines()[0]
    assert first.endswith((".", "?", "!", ":")), f"the first line does not end: {first}"
    assert first[0].isupper() or first.startswith(("``", "torch", "transformers", "vLLM")), first
