"""``palu-doctor`` as a user runs it, in a process of its own; where it refuses, in a fork of this one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from palu_vllm.server import agreement
from palu_vllm.server import doctor as doctor_module
from palu_vllm.server.doctor import CHECKS as RUNS
from palu_vllm.server.doctor import main
from tests.support.processes import forked
from tests.support.serving import outside
from tests.support.tokenizers import write_tokenizer

DOCTOR = Path(sys.executable).with_name("palu-doctor")
CHECKS = ["vLLM", "plugin", "kernels", "configuration", "tensors", "values", "sizes", "greedy tokens"]


@pytest.mark.serving
@pytest.mark.parametrize("family", ["qwen2", pytest.param("phi3", marks=pytest.mark.slow)])
def test_healthy(palu, family):
    command = [DOCTOR, palu(family, (32, 24), (40, 16))]
    ended = subprocess.run(command, capture_output=True, text=True, env=outside({}))
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    rows = [line for line in ended.stdout.splitlines() if line.startswith("ok ")]
    assert [row[8:24].strip() for row in rows] == CHECKS
    assert "896 bytes of KV cache per token in float32" in ended.stdout
    assert "served in bfloat16, vLLM's default, 448" in ended.stdout


def test_values_that_are_not_finite_as_json(palu, tmp_path):
    copy = shutil.copytree(palu(), tmp_path / "model")
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.self_attn.v_down.weight"
    tensors[name][3, 4] = torch.nan
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    ended = forked.run(main, copy, "--json")
    assert ended.returncode == 1
    report = json.loads(ended.stdout)
    assert not report["ok"]
    assert [check["check"] for check in report["checks"]] == CHECKS[:6]
    assert not report["checks"][-1]["ok"] and name in report["checks"][-1]["detail"]


def test_a_directory_that_is_no_checkpoint(tmp_path):
    ended = forked.run(main, tmp_path)
    assert ended.returncode == 1 and ended.stdout == ""
    assert (
        ended.stderr == f"palu-doctor: {tmp_path} has no config.json; expected a directory that palu-compress wrote.\n"
    )


def test_a_dense_model(dense):
    ended = forked.run(main, dense())
    assert ended.returncode == 1
    assert "FAILED  configuration" in ended.stdout and "no palu_config section" in ended.stdout


@pytest.mark.parametrize(("family", "normalised"), [("llama", False), ("qwen3", True)])
def test_the_configuration_names_norms(palu, family, normalised):
    assert ("queries and keys normalised" in RUNS["configuration"](palu(family))) == normalised


def test_a_plugin_that_vllm_may_not_load(palu):
    ended = forked.run(main, palu(), VLLM_PLUGINS="other")
    assert ended.returncode == 1
    assert "FAILED  plugin" in ended.stdout and "VLLM_PLUGINS=other leaves palu out" in ended.stdout


def test_tokens_that_differ_are_told(palu, monkeypatch):
    monkeypatch.setattr(agreement, "_with_vllm", lambda directory, requests: [[5, 6]] * 3)
    monkeypatch.setattr(agreement, "_with_transformers", lambda directory, requests, device: [[5, 7]] * 3)
    with pytest.raises(agreement.DisagreementError, match="they part at token 2"):
        agreement.require_equal_tokens(palu(), "cpu")


def test_quantized_layers_are_not_compared(palu, tmp_path):
    """They would be rounded differently; the model is not loaded."""
    copy = shutil.copytree(palu(), tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "any"}}))
    assert RUNS["greedy tokens"](copy).startswith("not compared")


@pytest.mark.parametrize(("kind", "ok"), [("GPT-2", True), ("cl100k", False)])
def test_tokens_are_compared_with_those_of_the_model(tmp_path, monkeypatch, kind, ok):
    monkeypatch.setattr(doctor_module, "CHECKS", {})
    out = write_tokenizer(tmp_path / "out", "GPT-2", {"model_type": "palu_llama"})
    base = write_tokenizer(tmp_path / "base", kind, {"model_type": "llama"})
    (finding,) = doctor_module.examine(out, lambda check: None, base)
    assert (finding.check, finding.ok) == ("tokenizer", ok)
    assert finding.detail.startswith("12 texts and 6 renderings" if ok else "English is ")
