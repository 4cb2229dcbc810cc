"""Whether the sources of one vLLM grant a use."""

import ast

from tests.palu_vllm.vllm_contract.sources import FUNCTIONS, Found, Sources
from tests.palu_vllm.vllm_contract.uses import Call, Use, is_of_class, is_static, parameters

OBJECT = set(dir(object))
MEMBERS = {"Enum": {"name", "value", "__members__"}, "nn.Module": {"named_parameters", "register_buffer"}}
MADE_BY_FIELDS = ("NamedTuple", "BaseModel", "Struct")


def complaint(use: Use, sources: Sources) -> str | None:
    """One sentence about what is missing; None where the use is granted."""
    operation = use.module == "torch.ops.vllm"
    found = sources.operation(use.name) if operation else sources.find(use.module, use.name)
    if found is None:
        return f"{use.where}: {use} is not there"
    within = None
    for name in use.path:
        within, found = found, _step(found, name, sources)
        if found is None:
            return f"{use.where}: {use} is not there"
        if found.node is None:
            return None  # of another package's class
    problem = _overridden(use, found) if use.takes is not None else None
    if use.call is not None:
        problem = _called(use, found, within, sources)
    return problem and f"{use.where}: {use} {problem}"


def _step(found: Found, name: str, sources: Sources) -> Found | None:
    """``found.name``. ``Found(..., None)`` where it belongs to a class that is not vLLM's."""
    if found.node is None:
        return sources.find(found.module, name)
    owner = found if isinstance(found.node, ast.ClassDef) else sources.type_of(found) or _made(found, sources)
    if owner is None:
        return Found(found.module, None)
    if member := sources.member(owner, name):
        return member
    outside = {base.rsplit(".", 1)[-1] if "Enum" in base else base for base in sources.outside(owner)}
    known = OBJECT.union(*(names for base, names in MEMBERS.items() if any(base in other for other in outside)))
    return Found(owner.module, None) if name in known else None


def _made(found: Found, sources: Sources) -> Found | None:
    """The class of ``NAME = Class(...)``."""
    value = getattr(found.node, "value", None)
    made = isinstance(value, ast.Call) and sources.find(found.module, ast.unparse(value.func))
    return made if made and isinstance(made.node, ast.ClassDef) else None


def _overridden(use: Use, found: Found) -> str | None:
    """Whether an own method takes everything that vLLM hands to the one that it stands for."""
    if not isinstance(found.node, FUNCTIONS):
        return "is no method any more"
    handed = parameters(found.node)[0 if is_static(found.node) else 1 :]
    anything = any(name.startswith("*") for name in use.takes)
    missing = [] if anything else [name for name in handed if name not in use.takes]
    return f"hands over {', '.join(missing)}, which the own one does not take" if missing else None


def _called(use: Use, found: Found, within: Found | None, sources: Sources) -> str | None:
    if isinstance(found.node, ast.ClassDef):
        made = sources.member(found, "__init__")
        if made is None:
            return _made_by_fields(use.call, found, sources)
        return _fits(use.call, made.node, bound=True)
    if not isinstance(found.node, FUNCTIONS):
        return None  # a callable object
    # Class.method(self, ...) hands its self over, instance.method(...) does not
    instance = use.instance or within is not None and not isinstance(within.node, ast.ClassDef)
    method = within is not None and within.node is not None
    bound = method and not is_static(found.node) and (instance or is_of_class(found.node))
    return _fits(use.call, found.node, bound)


def _made_by_fields(call: Call, found: Found, sources: Sources) -> str | None:
    if any("Enum" in base for base in sources.outside(found)):
        return None
    unknown = [name for name in call.keywords if sources.member(found, name) is None]
    return f"has no fields {', '.join(unknown)}" if unknown else None


def _fits(call: Call, function: ast.FunctionDef, bound: bool) -> str | None:
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][int(bound) :]
    by_name = {*positional, *(argument.arg for argument in arguments.kwonlyargs)}
    unknown = [name for name in call.keywords if name not in by_name and arguments.kwarg is None]
    if unknown:
        return f"takes no {', '.join(unknown)}"
    if call.positional > len(positional) and arguments.vararg is None:
        return f"takes {len(positional)} arguments by position, not {call.positional}"
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default
    ]
    missing = [name for name in required[call.positional :] if name not in call.keywords]
    return f"wants {', '.join(missing)} too" if missing and not call.open else None
