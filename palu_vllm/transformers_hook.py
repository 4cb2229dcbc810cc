"""Makes transformers' auto classes know the palu model types as soon as they are imported.

transformers has no plugin mechanism, and neither ``import palu_vllm`` nor the start of an interpreter may
cost an import of transformers. So this waits for transformers' own modules and registers right behind them.
``palu_vllm_autoload.pth`` in site-packages installs it at the start of every interpreter, hence no import but
``sys``. Until transformers reads entry points.
"""

import sys

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"  # imports CONFIGS


def _register() -> None:
    """Registers; where that fails, transformers goes on without the palu models."""
    try:
        from palu_vllm.huggingface import register_auto_classes

        register_auto_classes()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        import warnings

        warnings.warn(
            f"transformers will not load palu checkpoints: {type(error).__name__}: {error}; "
            "palu-vllm needs torch, safetensors and transformers 5.16 or newer.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Loader:
    """The real loader, followed by the registration."""

    def __init__(self, real) -> None:
        self.real = real

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module) -> None:
        module.__loader__ = module.__spec__.loader = self.real
        self.real.exec_module(module)
        if module.__name__ == MODELS or MODELS not in sys.modules:
            _register()


class _Finder:
    """Asks the other finders. Stays in ``sys.meta_path``, for another thread may be walking it."""

    def find_spec(self, fullname: str, path, target=None):
        if fullname not in (CONFIGS, MODELS):
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Registers now if the auto classes are loaded, otherwise as soon as they are. Harmless to repeat."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if CONFIGS in sys.modules:
        _register()
