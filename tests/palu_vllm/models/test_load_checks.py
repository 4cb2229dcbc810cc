"""A tensor that the configuration does not promise stops the load, also where only the loader sees it."""

import pytest
import torch

from palu_vllm.checkpoint import CheckpointError, iterate_tensors, read_json
from palu_vllm.models.load_checks import checked


@pytest.fixture
def config(palu):
    return read_json(palu() / "config.json")


def test_a_right_checkpoint_passes_unchanged(palu, config):
    passed = dict(checked(iterate_tensors(palu()), config))
    assert {name: tuple(tensor.shape) for name, tensor in passed.items()} == {
        name: tuple(tensor.shape) for name, tensor in iterate_tensors(palu())
    }


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.k_down.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]
)
def test_wrong_shape(config, name):
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[3, 5\], expected \[\d+, 256\]"):
        list(checked([(name, torch.zeros(3, 5))], config))


def test_unexpected_name(config):
    with pytest.raises(CheckpointError, match="unexpected tensor model.layers.0.self_attn.k_proj.weight"):
        list(checked([("model.layers.0.self_attn.k_proj.weight", torch.zeros(1))], config))
