"""The sources of one vLLM as syntax trees: where a name is defined, what a class has, what a function takes."""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
CONTAINERS = {"dict", "list", "tuple", "set"}
OPERATION = 'op_name="{}"'


@dataclass(frozen=True)
class Found:
    """A definition and the module that it is in; ``node`` is None for a module itself."""

    module: str
    node: ast.AST | None


class Sources:
    """``root`` is the directory with ``vllm/`` in it: ``site-packages``, or an unpacked wheel."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _file(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)

    def _names(self, module: str) -> dict[str, Any]:
        """What a module defines or imports, branches of ``if`` and ``try`` included; the last one counts."""
        file = self._file(module)
        return _names_of(file) if file else {}

    def find(self, module: str, name: str) -> Found | None:
        """The definition behind imports; None where there is no such name, or it is not vLLM's."""
        if not name:
            return Found(module, None) if self._file(module) else None
        node = self._names(module).get(name)
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            return self.find(self._absolute(module, node), original)
        if node is not None:
            return Found(module, node)
        if lazy := self._lazy(module, name):
            return self.find(*lazy)
        if variable := self._environment(module).get(name):
            return Found(module, variable)
        whole = (self.find(self._absolute(module, every), name) for every in self._names(module).get("*", ()))
        return next(filter(None, whole), None) or self.find(f"{module}.{name}", "")

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        package = module.split(".")[: None if self._file(module).name == "__init__.py" else -1]
        return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])

    def _lazy(self, module: str, name: str) -> tuple[str, str] | None:
        """Names that a package imports when they are asked for, by its table ``MODULE_ATTRS``."""
        table = self._names(module).get("MODULE_ATTRS")
        if not isinstance(table, ast.Assign):
            return None
        target = ast.literal_eval(table.value).get(name, "")
        return (module + target.split(":")[0], target.split(":")[1]) if target else None

    def _environment(self, module: str) -> dict[str, ast.AST]:
        """The environment variables that a module gives as attributes, by its table ``environment_variables``."""
        table = getattr(self._names(module).get("environment_variables"), "value", None)
        pairs = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
        return {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}

    def operation(self, name: str) -> Found | None:
        """The function behind ``torch.ops.vllm.<name>``."""
        for file in self.root.glob("vllm/model_executor/layers/**/*.py"):
            if OPERATION.format(name) in file.read_text(encoding="utf-8"):
                return self.find(".".join(file.relative_to(self.root).with_suffix("").parts), name)
        return None

    def ancestry(self, found: Found) -> Iterator[Found]:
        """A class and its bases, as far as they are vLLM's."""
        yield found
        for base in found.node.bases:
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            if (parent := self.find(found.module, name)) and isinstance(parent.node, ast.ClassDef):
                yield from self.ancestry(parent)

    def outside(self, found: Found) -> set[str]:
        """Names of the bases of a class that are not vLLM's."""
        bases = [(up, base) for up in self.ancestry(found) for base in up.node.bases]
        names = {ast.unparse(base.value if isinstance(base, ast.Subscript) else base): up.module for up, base in bases}
        return {name for name, module in names.items() if self.find(module, name) is None}

    def member(self, found: Found, name: str) -> Found | None:
        """A method, a field or what methods assign to ``self``, of a class or its bases."""
        for up in self.ancestry(found):
            if name in (members := _members(up.node)):
                return Found(up.module, members[name])
        return None

    def type_of(self, found: Found) -> Found | None:
        """The class of vLLM that an annotated definition holds or a property returns; None if it is another's."""
        if isinstance(found.node, FUNCTIONS):
            annotation = found.node.returns if "property" in map(ast.unparse, found.node.decorator_list) else None
        else:
            annotation = getattr(found.node, "annotation", None)
        words = re.findall(r"\w+", ast.unparse(annotation)) if annotation else []
        if words and words[0] in CONTAINERS:
            return None
        known = filter(None, (self.find(found.module, word) for word in words))
        classes = (type_ for type_ in known if isinstance(type_.node, ast.ClassDef))
        return next((type_ for type_ in classes if type_.module.split(".")[0] == "vllm"), None)


@functools.cache
def _names_of(file: Path) -> dict[str, Any]:
    """Definitions and imports by name; under ``*`` the imports of everything."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    stars = [node for name, node in _defined(body) if name == "*"]
    return dict(_defined(body)) | {"*": stars}


def _defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from ((name, node) for name in _targets(node))
        else:
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from _defined(getattr(node, part, []))


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


@functools.cache
def _members(node: ast.ClassDef) -> dict[str, ast.AST]:
    assigned = {}
    for found in ast.walk(node):
        targets = found.targets if isinstance(found, ast.Assign) else [getattr(found, "target", None)]
        for target in [part for whole in targets if whole for part in ast.walk(whole)]:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                assigned.setdefault(target.attr, found)
    return assigned | dict(_defined(node.body))
