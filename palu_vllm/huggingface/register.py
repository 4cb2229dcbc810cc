"""Makes transformers' auto classes know the palu model types, without an import by the user.

transformers has no plugin mechanism, and neither ``import palu_vllm`` nor the start of an interpreter may cost an
import of transformers or torch. So this waits for transformers' own tables of names and adds the palu names right
behind their import; transformers then looks for ``transformers.models.palu_llama`` when a checkpoint asks for it,
and gets ``palu_vllm.huggingface``. ``palu_vllm_autoload.pth`` in site-packages installs this at the start of every
interpreter, hence no import but ``sys`` and names. Until transformers reads entry points.
"""

import sys

from palu_vllm.families import CAUSAL_LM, CONFIG, FAMILIES, MODEL, palu_class, palu_type

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"
TABLES = {
    CONFIGS: {"CONFIG_MAPPING_NAMES": CONFIG},
    MODELS: {"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": CAUSAL_LM, "MODEL_MAPPING_NAMES": MODEL},
}
TOKENIZERS = "transformers.models.auto.tokenization_auto"
WATCHED = (*TABLES, TOKENIZERS)
ALIASES = {f"transformers.models.{palu_type(family)}" for family in FAMILIES}


def _add_classes(module) -> None:
    """Adds the names of configurations or of models."""
    for table, suffix in TABLES[module.__name__].items():
        getattr(module, table).update({palu_type(each): palu_class(each, suffix) for each in FAMILIES})


def _add_tokenizers(module) -> None:
    """Gives every palu model type the tokenizer that transformers chooses for the dense one, right or forced."""
    names, forced = module.TOKENIZER_MAPPING_NAMES, module.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    for family in FAMILIES:
        if family in names:
            names[palu_type(family)] = names[family]
        if family in forced:
            forced.add(palu_type(family))


def _register(module) -> None:
    """Adds the names to the tables of ``module``; without them, transformers goes on without palu models."""
    try:
        (_add_tokenizers if module.__name__ == TOKENIZERS else _add_classes)(module)
    except AttributeError as error:
        import warnings

        warnings.warn(
            f"transformers will not load palu checkpoints: {error}; palu-vllm needs transformers 5.16 to 5.19.",
            RuntimeWarning,
            stacklevel=2,
        )


class _Loader:
    """The real loader of a table, followed by the registration."""

    def __init__(self, real) -> None:
        self.real = real

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module) -> None:
        module.__loader__ = module.__spec__.loader = self.real
        self.real.exec_module(module)
        _register(module)


class _Alias:
    """Loads a module whose attributes are those of ``palu_vllm.huggingface``."""

    def create_module(self, spec) -> None:
        return None

    def exec_module(self, module) -> None:
        def find(name: str):
            from palu_vllm import huggingface

            return huggingface.find(name)

        module.__getattr__ = find


class _Finder:
    """Asks the other finders. Stays in ``sys.meta_path``, for another thread may be walking it."""

    def find_spec(self, fullname: str, path, target=None):
        if fullname in ALIASES:
            from importlib.machinery import ModuleSpec

            return ModuleSpec(fullname, _Alias())  # type: ignore[arg-type]  # a loader by its methods, without the import
        if fullname not in WATCHED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


def install() -> None:
    """Registers now with the tables that are loaded, later with the others. Harmless to repeat."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in WATCHED:
        if name in sys.modules:
            _register(sys.modules[name])
