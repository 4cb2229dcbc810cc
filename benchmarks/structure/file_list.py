"""``python -m benchmarks.structure.file_list`` prints one line per file, the first sentence of its docstring.

``docs/contributing/files.md`` is its output; a test says whether the page is current.
"""

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from benchmarks.common.provenance import ROOT
from benchmarks.structure.code import Code

HEAD = """# Files
One line per file, the first sentence of its docstring. [structure.md](structure.md) says how the folders work together.
`python -m benchmarks.structure.file_list > docs/contributing/files.md` writes this page.
"""
SENTENCE = re.compile(r".*?(?<!\bal)(?<!\.\.)[.?!](?=\s+[A-Z`\"(]|$)", re.DOTALL)


def first_sentence(tree: ast.Module) -> str:
    """In one line, nothing where a module says nothing."""
    text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    found = SENTENCE.match(text)
    return (found[0] if found else text).replace("``", "`")


def page(trees: dict[str, ast.Module]) -> Iterator[str]:
    """The lines of the page, folder by folder; tests are left out, and so are files that say nothing."""
    yield HEAD
    told = {name: first_sentence(tree) for name, tree in trees.items() if not name.startswith("tests/")}
    for folder, names in groupby(sorted(filter(told.get, told), key=order), key=lambda name: str(Path(name).parent)):
        yield f"## {folder}"
        yield from (f"- `{Path(name).name}`: {told[name]}" for name in names)
        yield ""


def order(name: str) -> tuple[str, str]:
    """Files of a folder stand together, before those of its folders."""
    return str(Path(name).parent), Path(name).name


def main() -> None:
    print("\n".join(page(Code(ROOT).trees)).rstrip())


if __name__ == "__main__":
    main()
