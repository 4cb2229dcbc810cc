"""The arms of vLLM: its Triton kernel for real, in the interpreter; FlashAttention-3, which needs CUDA, as far as its
signature.
"""

import importlib.util
import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common.provenance import ROOT
from benchmarks.kernels.layers import Model
from benchmarks.kernels.roofline_model import Batch
from benchmarks.latency import dense_arms
from benchmarks.latency.attention_case import Case, UnavailableError
from benchmarks.latency.dense_arms import FP8, FlashAttention3, FlashAttention3Fp8

IN_THE_INTERPRETER = """
from types import SimpleNamespace
from triton.backends import backends
backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))  # what vLLM wants on a CPU
import torch
from benchmarks.latency.attention_case import Case
from benchmarks.latency.dense_arms import VllmTriton
from benchmarks.latency.harness import checked_error
from benchmarks.kernels.layers import Model
from benchmarks.kernels.roofline_model import Batch
layer = Model(num_heads=8, num_kv_heads=2, head_dim=32, hidden_size=48, theta=1e4).layer(16, 24, 2)
case = Case(layer, 48, Batch(2, 37), torch.float16, torch.device("cpu"), block_size=16)
print(checked_error(VllmTriton(case), case))
"""


@pytest.fixture
def case() -> Case:
    layer = Model(num_heads=8, num_kv_heads=2, head_dim=32, hidden_size=48, theta=1e4).layer(16, 24, 2)
    return Case(layer, 48, Batch(2, 37), torch.float16, torch.device("cpu"), block_size=16)


def flash_interface():
    """vLLM's Python side of FlashAttention; without CUDA it imports only outside of its package."""
    folder = importlib.util.find_spec("vllm").submodule_search_locations[0]
    path = f"{folder}/vllm_flash_attn/flash_attn_interface.py"
    spec = importlib.util.spec_from_file_location("flash_attn_interface", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vllm_s_triton_kernel_gives_what_float32_gives():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", IN_THE_INTERPRETER]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 0.002


@pytest.mark.parametrize("arm", [FlashAttention3, FlashAttention3Fp8])
def test_flash_attention_is_called_as_vllm_declares_it(arm, case, monkeypatch):
    real, calls = flash_interface(), []

    def declared(name: str):
        signature = inspect.signature(getattr(real, name))
        return lambda *args, **kwargs: calls.append((name, signature.bind(*args, **kwargs).arguments))

    names = ("get_scheduler_metadata", "flash_attn_varlen_func")
    flash = SimpleNamespace(**{name: declared(name) for name in names})
    monkeypatch.setattr(dense_arms, "flash_attention_3", lambda device: flash)
    built = arm(case)
    out = built.attend(case.random(2, 8, 32))
    assert [name for name, _ in calls] == list(names)
    schedule, attention = (arguments for _, arguments in calls)
    stored = FP8 if arm is FlashAttention3Fp8 else case.dtype
    assert {attention[name].dtype for name in "qkv"} == {schedule["qkv_dtype"]} == {stored}
    assert (schedule["num_heads_q"], schedule["num_heads_kv"], schedule["headdim"]) == (8, 2, 32)
    assert attention["out"] is out and out.dtype == case.dtype
    assert attention["block_table"].shape == (2, 3) and attention["fa_version"] == 3
    assert ("k_descale" in attention) == (stored == FP8)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch for CUDA may have vLLM's extension beside it")
def test_without_its_extension_flash_attention_says_so(case):
    for _ in range(2):
        with pytest.raises(UnavailableError, match="vllm.vllm_flash_attn cannot be imported"):
            FlashAttention3(case)
