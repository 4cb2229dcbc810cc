"""Every name, attribute, call and override of vLLM in a Python source, by its syntax tree."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Call:
    """What is handed over: how many by position, which by name; ``open`` with ``*`` or ``**``."""

    positional: int
    keywords: tuple[str, ...]
    open: bool


@dataclass(frozen=True)
class Use:
    """``path`` of attributes of ``name`` in the vLLM module ``module``, called with ``call`` or only read.

    ``takes`` are the parameters of an own method that stands for the one of vLLM at this path.
    """

    where: str
    module: str
    name: str
    path: tuple[str, ...] = ()
    call: Call | None = None
    takes: tuple[str, ...] | None = None
    instance: bool = False

    def __str__(self) -> str:
        return ".".join((self.module, *filter(None, [self.name]), *self.path))


OWN = {  # members of classes of vLLM's kind that vLLM does not know, or never calls
    "AdapterNames.fused",
    "AdapterNames.of",
    "AdapterNames.mixed",
    "LatentAttention.forward",  # called by PaluAttention
    "PaluStatLogger._publish",
    "PaluStatLogger._set_used",
    "SinkWindowSpec.num_retained_tokens",  # asked for by vLLM 0.33
    "SinkWindowSpec.sink_blocks",
}
ENDPOINT = Use("", "vllm.plugins.endpoint_plugins.interface", "EndpointPlugin")
SIBLING = Use("", "vllm.v1.attention.backends.flash_attn", "FlashAttentionImpl")
STANDS_FOR = {  # members in whose place vLLM has these, though no base class says so
    "models.PaluAttention.__init__": Use("", "vllm.model_executor.models.llama", "LlamaAttention"),
    "attention_backend.PaluImpl.do_kv_cache_update": SIBLING,
    "codec.CodecImpl.do_kv_cache_update": SIBLING,
    **{
        f"server.PaluEndpoint.{member}": ENDPOINT
        for member in ("name", "required_tasks", "attach_router", "init_state")
    },
}


def of_package(package: Path) -> list[Use]:
    """The uses of all files below ``package``.

    Not seen: what a call returns, strings, and options that vLLM passes on by ``**``.
    """
    return [use for path in sorted(package.rglob("*.py")) for use in of_file(path)]


def of_file(path: Path) -> list[Use]:
    collector = _Collector(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    collector.visit(ast.parse(path.read_text(encoding="utf-8")))
    return collector.uses


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    """Names in order; ``*`` and ``**`` ones with their stars."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    return names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])


def is_static(function: ast.FunctionDef) -> bool:
    return _is_decorated(function, "staticmethod")


def is_of_class(function: ast.FunctionDef) -> bool:
    return _is_decorated(function, "classmethod")


def _is_decorated(function: ast.FunctionDef, name: str) -> bool:
    return any(isinstance(found, ast.Name) and found.id == name for found in function.decorator_list)


class _Collector(ast.NodeVisitor):
    """``known`` maps a variable to the use that its value is: an imported name, a typed parameter, an alias."""

    def __init__(self, path: Path) -> None:
        self.path, self.uses, self.known, self.own = path, [], {}, set()
        self.base: Use | None = None

    def _note(self, use: Use, node: ast.AST, **changes: object) -> None:
        self.uses.append(replace(use, where=f"{self.path}:{node.lineno}", **changes))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "vllm":
                self.known["vllm"] = Use("", "vllm", "")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                use = Use("", node.module, alias.name)
                self.known[alias.asname or alias.name] = use
                self._note(use, node)

    def _value(self, node: ast.AST) -> Use | None:
        """What of vLLM an expression is, if anything."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            if ast.unparse(node).startswith("torch.ops.vllm."):
                return Use("", "torch.ops.vllm", node.attr)
            if ast.unparse(node.value) == "self" and node.attr in self.own:
                return None
            found = self._value(node.value)
            return found and replace(found, path=(*found.path, node.attr))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super":
            return self.base and replace(self.base, instance=True)
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        found = self._value(node)
        if found is None:
            self.generic_visit(node)
        else:
            self._note(found, node)

    def visit_Call(self, node: ast.Call) -> None:
        found = self._value(node.func)
        if found is not None:
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            own = self.own if ast.unparse(node.func) == "cls" else ()
            names = [keyword.arg for keyword in node.keywords if keyword.arg not in own]
            call = Call(len(node.args), tuple(filter(None, names)), starred or None in names)
            self._note(found, node, call=call)
        if ast.unparse(node.func) == "getattr" and isinstance(node.args[1], ast.Constant):
            self.visit_Attribute(ast.Attribute(node.args[0], node.args[1].value, lineno=node.lineno))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = zip(target.elts, node.value.elts, strict=False) if _both_tuples(target, node.value) else []
            for name, value in pairs or [(target, node.value)]:
                if isinstance(name, ast.Name):
                    self.known[name.id] = self._value(value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """A table of lambdas says in its annotation what they take."""
        outer, taken = (
            self.known,
            self._annotated(node.annotation) if "Callable" in ast.unparse(node.annotation) else None,
        )
        lambdas = [found for found in ast.walk(node) if isinstance(found, ast.Lambda)]
        self.known = outer | {name: taken for found in lambdas for name in parameters(found)}
        self.generic_visit(node)
        self.known = outer

    def _annotated(self, annotation: ast.AST | None) -> Use | None:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value)
        names = [found.id for found in ast.walk(annotation) if isinstance(found, ast.Name)] if annotation else []
        found = next((self.known[name] for name in names if self.known.get(name)), None)
        return found and replace(found, instance=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self.known
        typed = {argument.arg: self._annotated(argument.annotation) for argument in _arguments(node)}
        first = next(iter(typed), None)
        if self.base is not None and first in ("self", "cls"):
            typed[first] = replace(self.base, instance=True)
        self.known = outer | typed
        self.generic_visit(node)
        self.known = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer = self.base, self.own
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        self.base = next(filter(None, map(self._value, bases)), None)
        self.own = set(_own_names(node))
        for name, takes, found in _members(node):
            if place := STANDS_FOR.get(f"{self.path.parent.name}.{node.name}.{name}", self.base):
                self._note(place, found, path=(name,), takes=takes)
        self.generic_visit(node)
        self.base, self.own = outer


def _both_tuples(*nodes: ast.AST) -> bool:
    return all(isinstance(node, ast.Tuple) for node in nodes)


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _own_names(node: ast.ClassDef) -> Iterator[str]:
    """What an instance has of its own: methods, fields, and whatever is assigned to ``self``."""
    yield from (found.target.id for found in node.body if isinstance(found, ast.AnnAssign))
    for found in ast.walk(node):
        if isinstance(found, ast.FunctionDef):
            yield found.name
        if isinstance(found, ast.Attribute) and isinstance(found.ctx, ast.Store) and ast.unparse(found.value) == "self":
            yield found.attr


def _members(node: ast.ClassDef) -> Iterator[tuple[str, tuple[str, ...] | None, ast.AST]]:
    """Members of a class, each of which vLLM must know by this name if the class is of its kind.

    A constructor that calls that of a parent of vLLM's is its own; another one stands for the parent's.
    """
    for found in node.body:
        name = getattr(found, "name", None) or getattr(getattr(found, "target", None), "id", None)
        if f"{node.name}.{name}" in OWN:
            continue
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            if found.name != "__init__" or "super().__init__(" not in ast.unparse(found).replace(
                "super().__init__()", ""
            ):
                yield found.name, tuple(parameters(found)[0 if is_static(found) else 1 :]), found
        elif isinstance(found, ast.AnnAssign | ast.Assign) and found.value is not None:
            target = found.target if isinstance(found, ast.AnnAssign) else found.targets[0]
            yield target.id, None, found
