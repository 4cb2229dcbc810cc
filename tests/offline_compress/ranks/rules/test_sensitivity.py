"""Streams: one truncated projection each, carried through the real layers."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.calibration.activations import activation_file
from offline_compress.model.access import KEY, VALUE, LayerRunner, hf_config, projection
from offline_compress.model.source import open_source
from offline_compress.ranks.rules.sensitivity import TruncatedStreams, sensitivity
from palu_vllm.format.kv import KV, flattened

SIDES = (KEY, VALUE)


@torch.no_grad()
def divergence(model: torch.nn.Module, tokens: torch.Tensor, layer: int, name: str, weight: torch.Tensor) -> float:
    """KL of transformers' model with one weight replaced, in nats per token."""
    dense = model(tokens).logits.log_softmax(-1)
    linear = getattr(model.model.layers[layer].self_attn, name)
    before = linear.weight.data
    linear.weight.data = weight
    found = model(tokens).logits.log_softmax(-1)
    linear.weight.data = before
    return (dense.exp() * (dense - found)).sum(-1).mean().item()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_divergences_are_those_of_the_whole_model(tmp_path, monkeypatch, dense, family):
    monkeypatch.setattr("offline_compress.ranks.rules.sensitivity.CHUNK_TOKENS", 7)
    model = AutoModelForCausalLM.from_pretrained(dense(family), dtype=torch.float32)
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    source = open_source(str(dense(family)))
    runner = LayerRunner(source, hf_config(source.config), torch.device("cpu"))
    expected = []
    with activation_file(tmp_path, (24, 64)) as file:
        streams = TruncatedStreams(runner, tokens, file)
        for layer in range(2):
            others = [0.5 * source.tensor(projection(layer, name)) for name in SIDES]
            streams.add(layer, KV(*others))
            expected += [divergence(model, tokens, layer, *each) for each in zip(SIDES, others, strict=True)]
        found = flattened(streams.divergences())
    assert min(expected) > 0
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-6)


def test_nothing_changed_is_no_divergence(tmp_path, dense):
    source = open_source(str(dense("llama")))
    runner = LayerRunner(source, hf_config(source.config), torch.device("cpu"))
    with activation_file(tmp_path, (9, 64)) as file:
        streams = TruncatedStreams(runner, torch.arange(9)[None], file)
        for layer in range(2):
            streams.add(layer, KV(*(source.tensor(projection(layer, name)) for name in SIDES)))
        assert flattened(streams.divergences()) == pytest.approx([0.0] * 4, abs=1e-6)


def test_sensitivity_is_divergence_per_energy():
    found = [sensitivity(*each) for each in ((0.5, 2.0), (0.2, 0.1), (0.1, 0.0))]
    assert found == pytest.approx([0.25, 2.0, 1.0])
