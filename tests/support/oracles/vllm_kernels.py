"""vLLM's own Triton kernels in the interpreter: without a GPU vLLM puts a placeholder in Triton's place."""

import importlib.util
from functools import cache
from types import ModuleType
from unittest.mock import patch


@cache
def with_triton(name: str) -> ModuleType:
    """A fresh copy of a module of vLLM whose kernels are real ones; other modules keep what they have."""
    import triton
    from triton import language
    from vllm import triton_utils

    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    with patch.multiple(triton_utils, triton=triton, tl=language):
        spec.loader.exec_module(module)
    return module
