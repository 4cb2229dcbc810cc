"""Sizes of folders, files, functions and calls, of Python code by its syntax trees, of C++ code its files alone."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("palu_vllm", "offline_compress", "benchmarks", "demo", "tests")
FILES_OF_A_FOLDER, LINES_OF_A_FILE, POSITIONAL_ARGUMENTS = 15, 300, 12
LINES_OF_A_FUNCTION, LINES_OF_A_KERNEL = 50, 120
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """A number, where it was found, and the most that it may be; None for no limit."""

    number: int
    place: str
    limit: int | None = None

    @property
    def is_over(self) -> bool:
        return self.limit is not None and self.number > self.limit

    def __str__(self) -> str:
        return f"{self.number:5}  {self.place}"


class Code:
    """The code of the packages below ``root``; Python files are parsed once, of C++ files sizes alone are known."""

    def __init__(self, root: Path) -> None:
        files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
        others = [file for package in PACKAGES for file in sorted((root / package).rglob("*.?pp"))]
        self.compiled = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in others}
        self.texts = {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in files}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def folders(self) -> list[Size]:
        """The files of every folder; ``__init__.py`` is not counted."""
        files = [Path(name) for name in (*self.texts, *self.compiled)]
        counts = Counter(str(file.parent) for file in files if file.name != "__init__.py")
        return [Size(count, folder, FILES_OF_A_FOLDER) for folder, count in counts.items()]

    def files(self) -> list[Size]:
        return [Size(text.count("\n"), name, LINES_OF_A_FILE) for name, text in (self.texts | self.compiled).items()]

    def functions(self) -> list[Size]:
        """The lines of every function; a Triton kernel may be longer than others."""
        return [Size(_lines(node), _place(name, node), _most_lines(node)) for name, node in self._functions()]

    def parameters(self) -> list[Size]:
        return [Size(_parameters(node), _place(name, node)) for name, node in self._functions()]

    def calls(self) -> list[Size]:
        """The positional arguments of every call; those of an unpacked sequence count as one."""
        calls = ((name, node) for name, node in self._nodes() if isinstance(node, ast.Call))
        return [Size(len(node.args), f"{name}:{node.lineno}", POSITIONAL_ARGUMENTS) for name, node in calls]

    def lines(self) -> dict[str, int]:
        """The lines of every package."""
        total: Counter[str] = Counter()
        for name, text in (self.texts | self.compiled).items():
            total[Path(name).parts[0]] += text.count("\n")
        return dict(total)

    def _nodes(self) -> Iterator[tuple[str, ast.AST]]:
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                yield name, node

    def _functions(self) -> Iterator[tuple[str, Function]]:
        return ((name, node) for name, node in self._nodes() if isinstance(node, Function))


def _place(name: str, node: Function) -> str:
    return f"{name}:{node.lineno} {node.name}"


def _lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _parameters(node: Function) -> int:
    return len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)


def _most_lines(node: Function) -> int:
    """A kernel is a function whose decorator is Triton's ``jit``, called or not."""
    is_kernel = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    return LINES_OF_A_KERNEL if is_kernel else LINES_OF_A_FUNCTION
