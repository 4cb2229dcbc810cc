"""The faster interpreter gives Triton's own numbers, and leaves the language as it was."""

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import KernelInterface

from tests.support.speed import fast_interpreter


@triton.jit
def doubled(x):
    return x + x


@triton.jit
def row_sums_kernel(source, out, COLUMNS: tl.constexpr):  # noqa: N803
    row, columns = tl.program_id(0), tl.arange(0, COLUMNS)
    numbers = doubled(tl.load(source + row * COLUMNS + columns))
    tl.store(out + row, tl.sum(tl.where(numbers > 0, numbers, 0.0), axis=0))


def run(kernel: KernelInterface, source: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(source),), float("nan"))
    kernel[(len(source),)](source, out, COLUMNS=source.shape[1])
    return out


def test_numbers_are_those_of_tritons_interpreter(monkeypatch):
    source = torch.randn(3, 16)
    fast_interpreter.install()
    fast = run(row_sums_kernel, source)
    monkeypatch.setattr(interpreter, "_patch_lang", fast_interpreter.patch_language)
    monkeypatch.setattr(interpreter, "_get_np_dtype", fast_interpreter.find_dtype)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", fast_interpreter.call_and_patch)
    assert torch.equal(fast, run(row_sums_kernel, source))
    torch.testing.assert_close(fast, 2 * source.clamp(min=0).sum(1))


def test_the_language_is_as_it_was_behind_a_launch():
    fast_interpreter.install()
    names = [(tl, "load"), (tl.core, "reduce"), (tl.tensor, "__init__"), (tl.block_type, "__init__")]
    before = [getattr(owner, name) for owner, name in names]
    run(row_sums_kernel, torch.randn(1, 16))
    assert [getattr(owner, name) for owner, name in names] == before
