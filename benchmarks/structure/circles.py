"""Import circles between modules, of the imports that run when a module is imported."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def circles(trees: Mapping[str, ast.Module]) -> list[str]:
    """Every circle as ``a -> b -> a``, of files by their path; at least one of those that share an import."""
    modules = {_module(name): tree for name, tree in trees.items()}
    graph = {name: set(_imported(name, tree, modules)) - {name} for name, tree in modules.items()}
    found = []
    while (circle := _circle(graph)) is not None:
        found.append(" -> ".join(circle))
        graph[circle[0]].discard(circle[1])
    return found


def _circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A circle, every module importing the next one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return None


def _module(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(module: str, tree: ast.Module, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names if node.module in modules)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """What runs at import: no bodies of functions, nothing for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _executed(child)
