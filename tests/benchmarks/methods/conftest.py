"""A tiny grouped-query model in float64, so that a request alone and in a batch takes the same codes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.methods.harness.attention import IMPLEMENTATION, layers_of
from tests.support.tiny_models import build_dense

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"head_dim": 16, "num_hidden_layers": 3}


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory):
    directory = build_dense(tmp_path_factory.mktemp("methods") / "dense", **SMALL)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()


@pytest.fixture(scope="session")
def model(dense_model):
    config = type(dense_model.config).from_dict(dense_model.config.to_dict())
    model = type(dense_model)(config).double().eval()
    model.load_state_dict(dense_model.state_dict())
    model.set_attn_implementation(IMPLEMENTATION)
    return model


@pytest.fixture(scope="session")
def layers(model):
    return layers_of(model, torch.float32)
