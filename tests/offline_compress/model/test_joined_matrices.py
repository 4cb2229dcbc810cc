"""Phi-3: joined matrices are read as their parts, and what cannot be taken apart or served is one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from offline_compress import CompressionError, compress
from offline_compress.model.access import hf_config
from offline_compress.model.source import open_source
from palu_vllm.format.checkpoint import SINGLE, checkpoint_shapes
from tests.support.joined import apart
from tests.support.tiny_models import build_even, edit_config

PUBLISHED = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.fixture
def phi(dense, tmp_path):
    return shutil.copytree(dense("phi3"), tmp_path / "model")


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_parts_are_the_rows(tmp_path, kv_heads):
    model = build_even(tmp_path / "model", "phi3", num_key_value_heads=kv_heads, max_shard_size="60KB")
    source = open_source(str(model))
    stored = {}
    for file in model.glob("*.safetensors"):
        stored |= load_file(file)
    expected = apart(stored, source.config)
    assert source.tensors.keys() == expected.keys()
    assert not [name for name in expected if "qkv" in name or "gate_up" in name]
    for name, tensor in expected.items():
        assert torch.equal(source.tensor(name), tensor)
        assert torch.equal(torch.cat(list(source.chunks(name))), tensor)


@pytest.mark.parametrize(("window", "theta"), [(None, 1e4), (2047, 5e5)])
def test_the_network_is_that_of_the_configuration(phi, window, theta):
    """Also what transformers would have filled in differently for the other family."""
    edit_config(phi, rms_norm_eps=None, rope_theta=theta, rope_parameters=None, sliding_window=window)
    config = hf_config(open_source(str(phi)).config)
    assert (config.rms_norm_eps, config.sliding_window) == (1e-5, window)
    assert config.rope_parameters["rope_theta"] == theta


def test_code_that_transformers_has_taken_in_is_not_passed_on(phi, tmp_path):
    edit_config(phi, auto_map=PUBLISHED)
    (phi / "modeling_phi3.py").write_text("raise SystemExit('this must never run')")
    compress(phi, tmp_path / "out", objective="svd", search="uniform")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "palu_phi3" and "auto_map" not in written
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": PUBLISHED | {"AutoConfig": "evil.Phi3Config"}}, "code of its own"),
        ({"partial_rotary_factor": 0.75, "rope_parameters": None}, "partial_rotary_factor is not 1"),
        ({"rope_scaling": LONGROPE, "rope_parameters": None}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": LONGROPE | {"type": "su"}, "rope_parameters": None}, "rope type 'su' is not supported"),
        ({"rope_scaling": LONGROPE | {"type": "yarn"}, "rope_parameters": None}, "not a valid phi3 .*'longrope'"),
        ({"num_key_value_heads": 2}, r"qkv_proj.weight has shape \[256, 64\], expected 192 rows"),
        ({"intermediate_size": 100}, r"gate_up_proj.weight has shape \[192, 64\], expected 200 rows"),
        ({"intermediate_size": None}, "intermediate_size=None"),
        ({"num_hidden_layers": 3}, "lacks tensor model.layers.2."),
    ],
)
def test_what_cannot_be_compressed(phi, tmp_path, changes, words):
    path = phi / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CompressionError, match=words) as caught:
        compress(phi, tmp_path / "out", objective="svd", search="uniform")
    assert "\n" not in str(caught.value)


def test_a_tensor_that_phi3_does_not_have(phi, tmp_path):
    save_file(load_file(phi / SINGLE) | {"score.weight": torch.zeros(2, 64)}, phi / SINGLE, {"format": "pt"})
    with pytest.raises(CompressionError, match="has tensor score.weight, unknown to phi3"):
        compress(phi, tmp_path / "out", objective="svd", search="uniform")


def test_the_checkpoint_has_the_parts(phi, tmp_path):
    compress(phi, tmp_path / "out", objective="svd", search="uniform")
    names = checkpoint_shapes(tmp_path / "out")
    assert {"q_proj.weight", "k_down.weight", "k_up"} <= {name.partition("self_attn.")[2] for name in names}
    assert "model.layers.0.mlp.gate_proj.weight" in names
