"""Every model that cannot be compressed is one sentence, found before anything is computed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offline_compress import CompressionError, compress
from offline_compress.model.source import check_finite, find_directory, open_source
from palu_vllm.format.checkpoint import INDEX, SINGLE, CheckpointError
from tests.support.tiny_models import build_even, edit_config


def refuse(model: Path, words: str) -> None:
    """Asserts that compressing ends in one sentence with ``words`` and leaves nothing behind."""
    before = sorted(model.parent.iterdir())
    with pytest.raises((CompressionError, CheckpointError), match=words) as caught:
        compress(model, model.parent / "out", objective="svd", search="uniform")
    assert "\n" not in str(caught.value)
    assert sorted(model.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; expected one of llama, mistral, qwen2, qwen3, phi3"),
        ({"model_type": "gemma2"}, "model type 'gemma2' is not supported"),
        ({"model_type": "mixtral"}, "model type 'mixtral' is not supported"),
        ({"model_type": "qwen3_moe"}, "model type 'qwen3_moe' is not supported"),
        ({"model_type": "phi"}, "model type 'phi' is not supported"),
        ({"model_type": None}, "model type None is not supported"),
        ({"model_type": "palu_llama"}, "is already compressed"),
        ({"palu_config": {}}, "is already compressed"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
        ({"auto_map": "evil.Model"}, "code of its own"),
        ({"auto_map": {"AutoModel": "modeling_phi3.Phi3ForCausalLM"}}, "code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized weights \(gptq\), which cannot be decomposed"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, r"quantized weights \(fp8\)"),
        ({"quantization_config": {"bits": 4}}, "quantized weights, which cannot be decomposed; give the checkpoint"),
        ({"compression_config": {"format": "pack-quantized"}}, "quantized weights"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}, "rope_parameters": None}, "rope type 'longrope'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding windows"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "sliding windows"),
        ({"hidden_size": "64"}, "hidden_size='64'"),
        ({"num_key_value_heads": 3}, "not a multiple of 3"),
        ({"hidden_size": 32}, "expected .* from config.json"),
        ({"head_dim": 8}, r"q_proj.weight has shape \[128, 64\], expected \[64, 64\]"),
        ({"num_key_value_heads": 2}, r"k_proj.weight has shape \[64, 64\], expected \[32, 64\]"),
        ({"intermediate_size": 128}, "mlp"),
        ({"vocab_size": 400}, "expected .400, 64. from config.json"),
        ({"num_hidden_layers": 3}, "lacks tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "has tensor model.layers.1."),
        ({"attention_bias": True}, "lacks tensor model.layers.0.self_attn.q_proj.bias"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn'"),
        ({"rms_norm_eps": "small"}, "not a valid llama configuration"),
    ],
)
def test_config_that_cannot_be_compressed(own_dense, changes, words):
    refuse(edit_config(own_dense, **changes), words)


def test_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressionError, match="is not a directory"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(CompressionError, match="is not a directory"):
        open_source(str(tmp_path / "file"))


def test_hub_id_that_the_hub_does_not_give(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_args, **_kwargs):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CompressionError, match="neither a directory nor a model that the hub gives"):
        find_directory("no-such-org/no-such-model")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1'])
def test_config_that_is_no_object(own_dense, content):
    (own_dense / "config.json").write_text(content)
    refuse(own_dense, "config.json")


def test_missing_and_pickled_weights(own_dense):
    (own_dense / SINGLE).unlink()
    refuse(own_dense, "expected safetensors weights")
    (own_dense / "pytorch_model.bin").write_bytes(b"")
    refuse(own_dense, "pickled weights only")


@pytest.mark.parametrize("keep", [0, 4, 1000, -10])
def test_truncated_weights(own_dense, keep):
    content = (own_dense / SINGLE).read_bytes()
    (own_dense / SINGLE).write_bytes(content[:keep])
    refuse(own_dense, "not a readable safetensors file")


def change_tensor(model: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(model / SINGLE) | {name: tensor}, model / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(own_dense, name, bad):
    tensor = load_file(own_dense / SINGLE)[name].clone()
    tensor.view(-1)[-1] = bad
    change_tensor(own_dense, name, tensor)
    refuse(own_dense, f"{name} in .* has values that are not finite")


def test_a_tensor_that_no_such_model_has(own_dense):
    change_tensor(own_dense, "score.weight", torch.zeros(2, 64))
    refuse(own_dense, "has tensor score.weight, unknown to llama")


@pytest.mark.parametrize("buffer", ["inv_freq", "cos_cached", "sin_cached"])
def test_derived_buffers_of_old_checkpoints_are_dropped(own_dense, tmp_path, buffer):
    change_tensor(own_dense, f"model.layers.0.self_attn.rotary_emb.{buffer}", torch.ones(8))
    compress(own_dense, tmp_path / "out", rank_ratio=1)
    assert not [name for name in load_file(tmp_path / "out" / SINGLE) if buffer in name]


@pytest.fixture
def sharded(tmp_path):
    return build_even(tmp_path / "sharded", max_shard_size="60KB")


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00007.safetensors").unlink(missing_ok=True)
    sorted(sharded.glob("model-*.safetensors"))[0].unlink()
    refuse(sharded, "is missing; fetch the checkpoint again")


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "..", "sub/x.safetensors", ""])
def test_paths_in_the_index_that_leave_the_directory(sharded, tmp_path, target):
    shutil.copy(next(sharded.glob("model-*.safetensors")), tmp_path / "secret.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = target
    (sharded / INDEX).write_text(json.dumps(index))
    refuse(sharded, "expected a plain file name")


def test_chunks_are_the_tensor(own_dense, monkeypatch):
    monkeypatch.setattr("offline_compress.model.source.CHUNK_BYTES", 1000)
    source = open_source(str(own_dense))
    check_finite(source)
    for name, tensor in load_file(own_dense / SINGLE).items():
        assert torch.equal(torch.cat(list(source.chunks(name))), tensor)


def test_a_snapshot_of_the_hub_gives_its_revision(dense, tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc123"
    shutil.copytree(dense("llama"), snapshot)
    source = open_source(str(snapshot))
    assert (source.name, source.revision) == ("org/name", "abc123")
