"""bfloat16 as hardware has it, in Triton's interpreter.

The interpreter (3.9) keeps bfloat16 as 16-bit integers. It truncates where hardware rounds to nearest, and its
``tl.dot`` multiplies the integers.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

interpreter_cast = InterpreterBuilder.cast_impl
interpreter_dot = InterpreterBuilder.create_dot


def cast(builder: InterpreterBuilder, source: TensorHandle, target: tl.dtype) -> TensorHandle:
    if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
        rounded = torch.tensor(source.data).to(torch.bfloat16).view(torch.int16).numpy()
        return TensorHandle(rounded.view(np.uint16), tl.bfloat16)
    if source.dtype.scalar == tl.bfloat16 and target.scalar == tl.float32:
        return TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return interpreter_cast(builder, source, target)


def dot(builder: InterpreterBuilder, left: TensorHandle, right: TensorHandle, *rest) -> TensorHandle:
    left, right = (cast(builder, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (left, right))
    return interpreter_dot(builder, left, right, *rest)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
