"""Triton's interpreter (3.9) without work whose result nobody uses: kernels of tests run in a third of the time.

- The whole language is patched again at every call of a device function, though the launch around it has done so.
- Every sum of integers is checked for overflow, and the check is dropped because ``debug`` is off.
- Every tuple works out its type, which only the compiler reads.
- The table of dtypes is built at every look-up, and every tensor builds its type, its name and its sizes anew.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

patch_language, find_dtype = interpreter._patch_lang, interpreter._get_np_dtype
found: dict[str, Any] = {}
call_and_patch = interpreter.InterpretedFunction.__call__
first_block_type, first_tensor = tl.block_type.__init__, tl.tensor.__init__
blocks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
sizes: dict[str, tuple[Any, Any]] = {}


def patch_for_launch(function: Any) -> Any:
    """Patches both modules of the language, whichever the kernel names: its device functions may name the other."""
    scope = patch_language(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    scope.set_attr(tl.block_type, "__init__", begin_block_type)
    scope.set_attr(tl.tensor, "__init__", begin_tensor)
    scope.set_attr(tl.core, "_type_for_tuple_values", lambda values, fields=None: None)
    return scope


def call_device_function(self: interpreter.InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise InterpreterError(repr(error)) from error


def numpy_dtype(dtype: tl.dtype) -> Any:
    scalar = dtype.scalar
    if scalar.name not in found:
        found[scalar.name] = find_dtype(scalar)
    return found[scalar.name]


def begin_block_type(self: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:
    """Sets what the first type of these numbers and this shape worked out; no attribute of it ever changes."""
    key = (element_ty.name, tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape))
    if key not in blocks:
        first_block_type(self, element_ty, shape)
        blocks[key] = dict(vars(self))
    vars(self).update(blocks[key])


def begin_tensor(self: tl.tensor, handle: Any, type: tl.dtype) -> None:
    """Shares numbers and sizes with the first tensor of this type."""
    if type.name not in sizes:
        first_tensor(self, handle, type)
        sizes[type.name] = self.numel, self.shape
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = sizes[type.name]


def install() -> None:
    interpreter._patch_lang = patch_for_launch
    interpreter.InterpretedFunction.__call__ = call_device_function
    interpreter._get_np_dtype = numpy_dtype
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
