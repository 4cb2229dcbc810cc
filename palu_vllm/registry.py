"""vLLM's registries: the names that palu has in them, and every write of it.

vLLM internals used: ``AttentionBackendEnum`` and its ``register_backend`` (public), ``KVCacheSpecRegistry`` (public),
``ModelRegistry`` (public) and the pickling of backends (private, see ``_reduce_backend``).
"""

import copyreg
from typing import TYPE_CHECKING, Any

from palu_vllm.families import CAUSAL_LM, FAMILIES, palu_class

if TYPE_CHECKING:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
    from vllm.v1.kv_cache_interface import KVCacheSpec

BACKEND = "PALU"
BACKEND_CLASS = "palu_vllm.attention_backend.backend.PaluBackend"
ARCHITECTURES = frozenset(palu_class(family, CAUSAL_LM) for family in FAMILIES)
TESTED_VLLM = "0.32"
SUPPORTED_VLLM = (TESTED_VLLM, "0.33")


class UnsupportedVllmError(ImportError):
    """The installed vLLM is not one that palu-vllm was written for."""


def is_supported(version: str) -> bool:
    """Whether a vLLM version such as ``0.32.0+cpu`` is one of ``SUPPORTED_VLLM``."""
    return ".".join(version.split(".")[:2]) in SUPPORTED_VLLM


def require_supported_vllm() -> None:
    """Raises UnsupportedVllmError. Called first when a palu model is imported."""
    import vllm

    if not is_supported(vllm.__version__):
        raise UnsupportedVllmError(
            f"palu-vllm serves with vLLM {' and '.join(f'{v}.x' for v in SUPPORTED_VLLM)}, but vLLM {vllm.__version__} "
            f"is installed; install vllm=={TESTED_VLLM}.*."
        )


def register_models() -> None:
    """Tells vLLM where the models are, without importing them. Harmless to repeat."""
    from vllm.model_executor.models import ModelRegistry

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"palu_vllm.models.families:{architecture}")


def palu_backend() -> "AttentionBackendEnum":
    """The member ``PALU`` of vLLM's enumeration of backends, registered at the first call."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if BACKEND not in AttentionBackendEnum.__members__:
        register_backend(BACKEND, BACKEND_CLASS)
        copyreg.pickle(AttentionBackendEnum, _reduce_backend)
    return AttentionBackendEnum[BACKEND]


def register_cache_spec(spec: "type[KVCacheSpec]", manager: "type[SingleTypeKVCacheManager]") -> None:
    """Tells vLLM which manager has the blocks of a spec. Harmless to repeat.

    vLLM registers its own specs at the first question, and not at all where it then finds one: hence the question
    about nothing. Until it registers them when they are imported.
    """
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    KVCacheSpecRegistry.check_kv_cache_spec_registry(kv_cache_spec={})
    KVCacheSpecRegistry.register(spec, manager)


def _reduce_backend(member: "AttentionBackendEnum") -> Any:
    """How a member travels to another process.

    vLLM sends its configuration to a spawned EngineCore, which unpickles it before it loads plugins, so a member
    must register itself on arrival. Until vLLM loads plugins first there.
    """
    return (palu_backend, ()) if member.name == BACKEND else member.__reduce_ex__(2)
