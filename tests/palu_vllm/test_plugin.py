"""``import palu_vllm`` costs nothing, ``register()`` may be called again, and nothing of it disturbs other models."""

import copy
import multiprocessing
import operator
import os
import subprocess
import sys

import pytest
from transformers import AutoConfig
from vllm.model_executor.models import ModelRegistry
from vllm.v1.attention.backends.registry import AttentionBackendEnum

import palu_vllm
from palu_vllm import registry
from palu_vllm.families import CAUSAL_LM, FAMILIES, palu_class, palu_type

LIGHT = """
import sys
import palu_vllm
heavy = {"torch", "transformers", "vllm", "triton", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""


def run(code: str, *path: object) -> subprocess.CompletedProcess:
    """``code`` in a new interpreter that finds modules in ``path`` first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_import_is_light():
    ended = run(LIGHT)
    assert ended.returncode == 0, ended.stderr


def test_register_twice():
    palu_vllm.register()
    member = AttentionBackendEnum["PALU"]
    palu_vllm.register()
    assert AttentionBackendEnum["PALU"] is member
    assert list(AttentionBackendEnum).count(member) == 1
    for family in FAMILIES:
        assert palu_class(family, CAUSAL_LM) in ModelRegistry.get_supported_archs()
        assert AutoConfig.for_model(palu_type(family)).model_type == palu_type(family)


def test_backend_survives_the_trip_to_a_spawned_process():
    members = [registry.palu_backend(), AttentionBackendEnum.CPU_ATTN]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(operator.attrgetter("name"), members) == ["PALU", "CPU_ATTN"]
    assert copy.deepcopy(members) == members


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.32.0+cpu", True),
        ("0.32.1", True),
        ("0.33.0rc1", True),
        ("0.3.2", False),
        ("0.34.0", False),
        ("1.32.0", False),
    ],
)
def test_supported_versions(version, supported):
    assert registry.is_supported(version) is supported


OTHER_VLLM = """
import sys, types
version = types.ModuleType("vllm._version")
version.__version__, version.__version_tuple__ = "0.29.1", (0, 29, 1)
sys.modules["vllm._version"] = version
"""
SERVE = """
from vllm import LLM
if __name__ == "__main__":
    for model in {models!r}:
        llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=64)
        print("served", len(llm.generate("a")), flush=True)
"""


@pytest.mark.serving
@pytest.mark.slow
def test_unsupported_vllm_serves_other_models_and_refuses_palu_ones(dense, palu, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OTHER_VLLM)
    refused = run(SERVE.format(models=[str(dense()), str(palu())]), tmp_path)
    assert refused.returncode != 0
    assert refused.stdout.count("served 1") == 1, refused.stderr[-2000:]
    sentence = "palu-vllm serves with vLLM 0.32.x and 0.33.x, but vLLM 0.29.1 is installed; install vllm==0.32.*."
    assert sentence in refused.stdout + refused.stderr
