"""What a codec's file says of its calibration is what a server finds on the same text."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.drift import layer_drift, usual_drift
from palu_vllm.format.codec.drift import token_drift
from palu_vllm.kernels.codec.reference import encode_tokens
from tests.support.codecs.layers import layer_codec
from tests.support.codecs.models import random_layer


def test_a_layers_is_the_mean_over_its_tokens_but_the_first():
    codec = layer_codec(((64, 4),), ((32, 3), (32, 2)))
    generator = torch.Generator().manual_seed(2)
    key, value = (torch.randn(40, 2, 32, generator=generator) for _ in range(2))
    positions = torch.arange(40)
    tokens = token_drift(codec, key, value, encode_tokens(codec, key, value, positions), positions)
    torch.testing.assert_close(layer_drift(codec, key, value), tokens.nanmean(-1), rtol=2e-3, atol=1e-4)


def test_a_models_is_by_layer_and_leaves_out_what_is_not_quantized(dense):
    model = AutoModelForCausalLM.from_pretrained(dense(), dtype=torch.float32).eval()
    tiers = ((32, 4),), ((32, 3),)
    layers = {0: random_layer(4, 16, 2, *tiers, seed=0), 1: random_layer(4, 16, 2, ((32, 16),), tiers[1], seed=1)}
    samples = torch.randint(256, (2, 20))
    both, first, second = (usual_drift(model, rows, layers) for rows in (samples, samples[:1], samples[1:]))
    assert both.keys() == {"0"}
    assert both["0"] == pytest.approx([(a + b) / 2 for a, b in zip(first["0"], second["0"], strict=True)], abs=1e-3)
