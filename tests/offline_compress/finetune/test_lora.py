"""Adapters change nothing until they are trained, and merged they are the same model in the checkpoint's shapes."""

import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from offline_compress import CompressionError, compress
from offline_compress.finetune.lora import MODULES, add_adapters, merged_weights, simulate_packing
from palu_vllm.format.checkpoint import checkpoint_shapes

TOKENS = torch.randint(0, 256, (2, 19), generator=torch.Generator().manual_seed(1))
CASES = {
    "llama-fused": ("llama", {}),
    "llama-factored": ("llama", {"value_path": "factored"}),
    "qwen2-biases": ("qwen2", {}),
    "qwen3-whole": ("qwen3", {"rank_ratio": 1}),
    "phi3": ("phi3", {}),
}


@pytest.fixture(params=CASES)
def checkpoint(request, tmp_path, dense):
    family, options = CASES[request.param]
    compress(dense(family), tmp_path / "out", objective="svd", search="uniform", **options)
    return tmp_path / "out"


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits


def randomise(parameters) -> None:
    torch.manual_seed(2)
    for parameter in parameters:
        parameter.data.normal_(0, 0.05)


def test_untrained_adapters_change_nothing(checkpoint):
    model, before = load(checkpoint), load(checkpoint)
    before.model.layers[0].mlp.up_proj.weight.data[3, 4] = -0.0
    model.load_state_dict(before.state_dict())
    add_adapters(model, 4, 4.0)
    assert torch.equal(logits(model), logits(before))
    state = before.state_dict()
    for name, weight in merged_weights(model):
        assert torch.equal(weight.view(torch.int32), state[name].view(torch.int32)), name


def test_merged_equals_unmerged(checkpoint):
    model, plain = load(checkpoint), load(checkpoint)
    randomise(add_adapters(model, 4, 6.0))
    merged = dict(merged_weights(model))
    shapes = checkpoint_shapes(checkpoint)
    assert len(merged) == 2 * len(MODULES)
    assert all(tuple(weight.shape) == shapes[name] for name, weight in merged.items())
    before = logits(plain)
    plain.load_state_dict(plain.state_dict() | merged)
    assert_close(logits(plain), logits(model), rtol=0, atol=2e-4)
    assert (logits(plain) - before).abs().max() > 0.1


def test_only_adapters_are_trained(checkpoint):
    model = load(checkpoint)
    parameters = add_adapters(model, 4, 4.0)
    assert len(parameters) == 2 * 2 * len(MODULES)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {name.split(".")[4] for name in trained} == set(MODULES)


def test_packing_is_simulated_exactly_and_lets_gradients_through(tmp_path, dense):
    compress(dense("llama"), tmp_path / "out", objective="svd", search="uniform", tiers=((0.5, 8), (0.5, 3)))
    packed, simulated = load(tmp_path / "out"), load(tmp_path / "out")
    simulate_packing(simulated)
    assert_close(logits(simulated), logits(packed), rtol=0, atol=1e-5)
    parameters = add_adapters(simulated, 4, 4.0)
    randomise(parameters)
    simulated(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    assert all(parameter.grad.any() for parameter in parameters)


def test_without_peft_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CompressionError, match=r"needs peft; pip install palu-vllm\[finetune\]"):
        add_adapters(torch.nn.Linear(2, 2), 4, 4.0)
