"""Runs the kernels in Triton's interpreter, which is chosen when ``triton.jit`` is applied: before any import."""

import os
import sys

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"

if "palu_vllm.kernels.common" in sys.modules:
    import triton

    if isinstance(sys.modules["palu_vllm.kernels.common"].softmax_step, triton.JITFunction):
        raise RuntimeError("kernels were imported without TRITON_INTERPRET=1; set it before pytest starts")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
