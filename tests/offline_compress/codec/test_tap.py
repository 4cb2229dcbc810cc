"""A tap sees what attention gets, changes nothing by itself, and is gone afterwards."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.tap import tapped
from offline_compress.run.errors import CompressionError
from tests.support.tiny_models import SMALL, build_dense

TOKENS = torch.randint(3, 250, (1, 20), generator=torch.Generator().manual_seed(0))


def loaded(directory, family, **options):
    return AutoModelForCausalLM.from_pretrained(build_dense(directory, family, **(SMALL | options))).eval()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sees_every_layer_and_changes_nothing(family, tmp_path):
    model = loaded(tmp_path, family, query_pre_attn_scalar=16) if family == "gemma2" else loaded(tmp_path, family)
    shapes = {}

    def see(layer, query, key, value):
        shapes[layer] = tuple(query.shape), tuple(key.shape), tuple(value.shape)
        return key, value

    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()(TOKENS).logits
        with tapped(model, see):
            torch.testing.assert_close(model(TOKENS).logits, plain, rtol=1e-4, atol=1e-4)
    assert shapes == dict.fromkeys((0, 1), ((1, 8, 20, 16), (1, 4, 20, 16), (1, 4, 20, 16)))


def test_what_it_returns_is_attended_to_until_it_ends(tmp_path):
    model = loaded(tmp_path, "llama")

    def nothing(_layer, _query, key, value):
        return key, torch.zeros_like(value)

    with torch.inference_mode():
        plain = model(TOKENS).logits
        with tapped(model, nothing):
            changed = model(TOKENS).logits
        assert torch.equal(model(TOKENS).logits, plain)
    assert (changed - plain).abs().max() > 0.1
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_attention_of_its_own_is_refused(tmp_path, monkeypatch):
    model = loaded(tmp_path, "llama")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", lambda: False)
    with (
        pytest.raises(CompressionError, match="LlamaForCausalLM does not look its attention up by name"),
        tapped(model, lambda _layer, _query, key, value: (key, value)),
    ):
        pass
