"""The digest follows the K and V projections of a model, and nothing else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.format.codec.digest import FIRST_BYTES, model_digest

KEYS = "model.layers.1.self_attn.k_proj.weight"
VALUES = "model.layers.1.self_attn.v_proj.weight_packed"


@pytest.fixture
def model(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int) -> torch.Tensor:
        return torch.randn(rows, 300, generator=generator)

    attention = ("q_proj.weight", "k_proj.weight", "k_proj.bias", "v_proj.weight_packed")
    tensors = {f"model.layers.{i}.self_attn.{name}": matrix(64) for i in range(2) for name in attention}
    save_file(tensors | {"model.embed_tokens.weight": matrix(8)}, tmp_path / "model.safetensors")
    return tmp_path


def changed(model, name, change) -> str:
    """The digest once a tensor is another."""
    tensors = load_file(model / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, model / "model.safetensors")
    return model_digest(model)


@pytest.mark.parametrize("name", [KEYS, KEYS.replace("weight", "bias"), VALUES])
def test_one_number_of_keys_or_values_changes_it(model, name):
    assert model_digest(model) != changed(model, name, lambda tensor: tensor.index_fill(1, torch.tensor([0]), 7.0))


@pytest.mark.parametrize("change", [torch.Tensor.half, lambda tensor: tensor.reshape(32, 600).clone()])
def test_so_do_another_dtype_and_shape(model, change):
    assert model_digest(model) != changed(model, KEYS, change)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_other_tensors_do_not(model, name):
    assert model_digest(model) == changed(model, name, torch.zeros_like)


def test_only_the_beginning_of_a_tensor_is_read(model):
    def end(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.flatten().clone()
        flat[FIRST_BYTES // 4 :] = 0.0
        return flat.view_as(tensor)

    assert model_digest(model) == changed(model, KEYS, end)


def test_shards_and_their_order_do_not_matter(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    where = {}
    for number, name in enumerate(reversed(sorted(tensors))):
        file = f"model-{number % 3}.safetensors"
        where[name] = file
    for file in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert model_digest(shards) == model_digest(model)


def test_a_model_without_such_tensors_is_refused(tmp_path):
    save_file({"embed.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no tensor named like a projection of keys or values"):
        model_digest(tmp_path)
