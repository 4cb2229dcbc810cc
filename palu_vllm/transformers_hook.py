"""Makes transformers' auto classes know the palu model types as soon as they are imported.

transformers has no plugin mechanism, and neither ``import palu_vllm`` nor the start of an interpreter may
cost an import of transformers. So this waits for transformers' own modules and registers right behind them.
``palu_vllm_autoload.pth`` in site-packages installs it at the start of every interpreter, hence the few
imports. Until transformers reads entry points.
"""

import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# module of transformers -> function of palu_vllm.huggingface to call once it is imported
AWAITED = {
    "transformers.models.auto.configuration_auto": "register_configs",
    "transformers.models.auto.modeling_auto": "register_auto_classes",
}


def _register(awaited: str) -> None:
    """Registers; where that fails, transformers goes on without the palu models."""
    try:
        from palu_vllm import huggingface

        getattr(huggingface, AWAITED[awaited])()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        warnings.warn(
            f"transformers will not load palu checkpoints: {type(error).__name__}: {error}; "
            "palu-vllm needs torch, safetensors and transformers 5.16 or newer.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Loader:
    """The real loader, followed by the registration."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.real
        self.real.exec_module(module)
        _register(module.__name__)


class _Finder:
    """Asks the other finders. Stays in ``sys.meta_path``, for another thread may be walking it."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in AWAITED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Registers with the auto classes that are loaded, and with the others when they are. Harmless to repeat."""
    for awaited in AWAITED:
        if awaited in sys.modules:
            _register(awaited)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
