"""A tensor that the configuration does not promise stops the load, also where only the loader sees it."""

import pytest
import torch

from palu_vllm.format.checkpoint import CheckpointError, iterate_tensors, read_json
from palu_vllm.loading.checked import checked


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_up", "model.layers.0.mlp.down_proj.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(palu, config, name, bad, dtype):
    weights = dict(iterate_tensors(palu()))
    weights[name] = weights[name].to(dtype)
    weights[name].view(-1)[-1] = bad
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        list(checked(weights.items(), config))


def test_unexpected_name(config):
    with pytest.raises(CheckpointError, match="unexpected tensor model.layers.0.self_attn.k_proj.weight"):
        list(checked([("model.layers.0.self_attn.k_proj.weight", torch.zeros(1))], config))
