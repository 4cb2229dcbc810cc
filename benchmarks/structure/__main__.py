"""``python -m benchmarks.structure``: the sizes of the house, and an exit code of 1 where a rule is broken."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.provenance import ROOT
from benchmarks.structure.circles import circles
from benchmarks.structure.code import Code, Size
from benchmarks.structure.prose import summary

SHOWN = 5  # largest of a kind


def sizes(code: Code) -> dict[str, list[Size]]:
    return {
        "files of a folder": code.folders(),
        "lines of a file": code.files(),
        "lines of a function": code.functions(),
        "parameters of a function": code.parameters(),
        "positional arguments of a call": code.calls(),
    }


def broken(found: dict[str, list[Size]], closed: list[str]) -> Iterator[str]:
    """One sentence for every rule that is broken."""
    for kind, measured in found.items():
        for size in measured:
            if size.is_over:
                yield f"{size.place}: {size.number} {kind}, at most {size.limit}."
    yield from (f"Import circle: {circle}." for circle in closed)


def shown(kind: str, measured: list[Size]) -> str:
    """Every folder; of other kinds the largest."""
    largest = sorted(measured, key=lambda size: (-size.number, size.place))
    listed = largest if kind == "files of a folder" else largest[:SHOWN]
    return "\n".join([f"{kind}:", *map(str, listed)])


def report(root: Path, code: Code, found: dict[str, list[Size]]) -> str:
    lines = "".join(f"{count:7} {package}\n" for package, count in code.lines().items())
    pages = {"README": [root / "README.md"], "docs": sorted((root / "docs").rglob("*.md"))}
    words = [f"{name}: {summary([page for page in own if page.is_file()])}" for name, own in pages.items()]
    parts = [shown(kind, measured) for kind, measured in found.items()]
    return "\n\n".join([f"lines of Python:\n{lines.rstrip()}", *parts, "\n".join(words)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    root = parser.parse_args(arguments).root
    code = Code(root)
    found = sizes(code)
    complaints = list(broken(found, circles(code.trees)))
    print("\n".join([report(root, code, found), "", *complaints, f"{len(complaints)} rules broken"]))
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
