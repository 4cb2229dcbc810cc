"""Runs the kernels in Triton's interpreter, which is chosen when ``triton.jit`` is applied: before any import."""

import os
import sys

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"

from triton.runtime.jit import JITFunction

from tests.palu_vllm.kernels import interpreter_bfloat16
from tests.support.speed import fast_interpreter

if isinstance(getattr(sys.modules.get("palu_vllm.kernels.gpu.tiles.keys"), "softmax_step", None), JITFunction):
    raise RuntimeError("the kernels were imported without TRITON_INTERPRET=1; set it before pytest starts")


fast_interpreter.install()


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """Tensors are tiny here, and one thread leaves the other cores to whatever else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch):
    interpreter_bfloat16.install(monkeypatch)
