"""A kernel whose launches differ in few arguments: which of its compilations they need is looked up by these alone.

Triton looks at every argument of every launch, constants and tuples of them too. That costs the host more than the
launch itself, once per kernel, layer and step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction, KernelInterface

from palu_vllm.kernels.gpu.arguments import taken_by

Grid = tuple[int, int, int]


class BoundKernel:
    """``kernel`` with the arguments ``given``, in which its launches do not differ; it takes what it knows of them.

    Raises ValueError where one of its constants is not among them.
    """

    def __init__(self, kernel: KernelInterface, given: Mapping[str, Any]) -> None:
        self.kernel, self.given = kernel, taken_by(kernel, dict(given))
        self.names = [name for name in kernel.arg_names if name not in self.given]
        self.places = [kernel.arg_names.index(name) for name in self.names]
        self.arguments = [self.given.get(name) for name in kernel.arg_names]
        self.compiled: dict[tuple, CompiledKernel] = {}
        parameters = getattr(kernel, "params", ())  # the interpreter knows none
        missing = [each.name for each in parameters if each.is_constexpr and each.name not in self.given]
        if missing:
            raise ValueError(f"got no {' or '.join(missing)}, expected every constant of {kernel} among what is given")
        self.pointers = [name for name in self.names if name.endswith("_ptr")]
        varying = {each.name for each in parameters if each.do_not_specialize}
        self.numbers = [(name, name in varying) for name in self.names if not name.endswith("_ptr")]

    def launch(self, grid: Grid, others: Mapping[str, Any]) -> None:
        """With the rest of the arguments, by name; names that the kernel does not have are left out."""
        kinds = *pointer_kinds(map(others.__getitem__, self.pointers)), *number_kinds(others, self.numbers)
        compiled = self.compiled.get(kinds)
        if compiled is None:
            found = self.kernel[grid](**self.given, **{name: others[name] for name in self.names})
            if isinstance(self.kernel, JITFunction) and found is not None:  # the interpreter compiles nothing
                self.compiled[kinds] = found
            return
        arguments = self.arguments.copy()
        for place, name in zip(self.places, self.names, strict=True):
            arguments[place] = others[name]
        compiled[grid](*arguments)


def pointer_kinds(tensors: Iterable[torch.Tensor]) -> list[tuple[torch.dtype, int]]:
    """What Triton tells tensors apart by: their types and how they lie to 16 bytes."""
    return [(tensor.dtype, tensor.data_ptr() & 15) for tensor in tensors]


def number_kinds(others: Mapping[str, Any], numbers: Iterable[tuple[str, bool]]) -> list[tuple[bool, ...]]:
    """What Triton tells integers apart by: whether 32 bits hold them, and unless the kernel ``varies`` in them, whether
    they are 1 or a multiple of 16. ``numbers`` are their names and whether it does.
    """
    found: list[tuple[bool, ...]] = []
    for name, varies in numbers:
        value = others[name]
        narrow = -(1 << 31) <= value < 1 << 31
        found.append((narrow,) if varies else (narrow, value == 1, value & 15 == 0))
    return found
