"""Makes ``AutoModelForCausalLM`` know the palu model types as soon as transformers is imported.

transformers has no plugin mechanism, and neither ``import palu_vllm`` nor the start of an interpreter may
cost an import of transformers. So this waits for the import of ``transformers.models.auto.modeling_auto``
and registers the classes right behind it. Until transformers reads entry points.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

AWAITED = "transformers.models.auto.modeling_auto"


def _register() -> None:
    from palu_vllm.huggingface import register_auto_classes

    register_auto_classes()


class _Loader(importlib.abc.Loader):
    """The real loader, followed by the registration."""

    def __init__(self, real: importlib.abc.Loader):
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        _register()


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Registers now if transformers' auto classes are loaded, otherwise when they are. Harmless to repeat."""
    if AWAITED in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
