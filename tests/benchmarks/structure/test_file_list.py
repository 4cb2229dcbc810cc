"""The list of files is the page in the documentation, and sentences end where a reader would say so."""

import ast

import pytest

from benchmarks.common.provenance import ROOT
from benchmarks.structure.code import Code
from benchmarks.structure.file_list import first_sentence, page


def test_the_page_is_current():
    """If it is not: ``python -m benchmarks.structure.file_list > docs/contributing/files.md``."""
    written = (ROOT / "docs/contributing/files.md").read_text(encoding="utf-8")
    assert written == "\n".join(page(Code(ROOT).trees)).rstrip() + "\n"


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("It writes\na file. It reads none.", "It writes a file."),
        ("By Bai et al. 2023: all of it.\n\nMore.", "By Bai et al. 2023: all of it."),
        ("``run`` and ``... compare``. More", "`run` and `... compare`."),
        ("no end\n\nMore.", "no end"),
    ],
)
def test_the_first_sentence(docstring, sentence):
    assert first_sentence(ast.parse(f'"""{docstring}"""')) == sentence


def test_folders_come_after_the_files_beside_them_and_tests_not_at_all():
    trees = {name: ast.parse('"""It is."""') for name in ("a/b/c.py", "a/z.py", "tests/test_x.py")}
    trees["a/silent.py"] = ast.parse("")
    lines = [line for line in page(trees) if line][1:]
    assert lines == ["## a", "- `z.py`: It is.", "## a/b", "- `c.py`: It is."]
