import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv

from benchmarks.methods.harness.attention import grouped_attention, layers_of, methods_attention
from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.harness.dense import Dense, DenseStore
from benchmarks.methods.harness.interface import held_bytes
from tests.benchmarks.methods.conftest import SMALL
from tests.support.tiny_models import build_dense


def test_grouped_attention_is_attention_over_repeated_heads():
    queries, keys, values = torch.randn(6, 5, 8), torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    scores = queries @ repeat_kv(keys[None], 3)[0].mT * 0.3
    causal = torch.arange(12)[None] <= torch.arange(5)[:, None] + 7
    expected = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ repeat_kv(values[None], 3)[0]
    torch.testing.assert_close(grouped_attention(queries, keys, values, 7, 0.3), expected)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_dense_is_transformers_own_cache(tmp_path, family):
    window = {"sliding_window": 64} if family == "mistral" else {}
    directory = build_dense(tmp_path / family, family, **SMALL, **window)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    row = torch.randint(256, (1, 30), generator=torch.Generator().manual_seed(4))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [511]}
    expected = model.generate(row, **options)
    layers = layers_of(model, torch.float64)
    with methods_attention(model):
        assert torch.equal(model.generate(row, past_key_values=MethodCache(Dense(), layers), **options), expected)
        if window:
            with pytest.raises(ValueError, match="sliding windows"):
                model(row.repeat(1, 3), past_key_values=MethodCache(Dense(), layers))


def test_beams_are_refused(model, layers):
    cache = MethodCache(Dense(), layers)
    with pytest.raises(NotImplementedError, match="beam search"):
        cache.reorder_cache(torch.tensor([0]))


def test_a_cache_can_be_used_again(model, layers):
    row = torch.randint(256, (1, 9), generator=torch.Generator().manual_seed(5))
    cache = MethodCache(Dense(), layers)
    first = model(row, past_key_values=cache).logits
    cache.reset()
    assert cache.nbytes() == 0 and torch.equal(model(row, past_key_values=cache).logits, first)


def test_another_cache_is_refused(model):
    with pytest.raises(ValueError, match="needs past_key_values to be a MethodCache"):
        model(torch.zeros(1, 3, dtype=torch.long), past_key_values=DynamicCache())


def test_a_view_counts_with_the_memory_that_it_keeps_alive(layers):
    store = DenseStore(layers[0])
    store.keys = torch.zeros(2, 100, 16)[:, :1]
    store.values = store.keys
    assert store.nbytes() == held_bytes([store, store]) == 2 * 100 * 16 * 4
    store.constants = (torch.zeros(1000),)
    assert store.nbytes() == 2 * 100 * 16 * 4
