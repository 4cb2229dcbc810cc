"""The cache holds latents, and nothing else about generating and training changes."""

import json

import pytest
import torch
from torch.testing import assert_close

from palu_vllm.format.config import AttentionGeometry, PaluConfig
from tests.palu_vllm.huggingface.oracle import EXACT, RANKS, generate, kv_bytes, load, logits, truncated


class TestCache:
    def test_holds_latents(self, fused, tokens):
        model = load(fused)
        cache = model(tokens).past_key_values
        for layer, rank_k, rank_v in zip(cache.layers, RANKS["rank_k"], RANKS["rank_v"], strict=True):
            assert layer.keys.shape == (2, 2, 23, rank_k)
            assert layer.values.shape == (2, 2, 23, rank_v)
        config = json.loads((fused / "config.json").read_text())
        palu = PaluConfig.from_hf_config(config)
        geometry = AttentionGeometry.from_hf_config(config)
        assert kv_bytes(cache) == tokens.numel() * palu.bytes_per_token(geometry, "float32")
        assert palu.bytes_per_token(geometry, "float32") < geometry.dense_bytes_per_token("float32")

    def test_changes_nothing(self, fused, tokens):
        model = load(fused)
        whole = logits(model, tokens, use_cache=False)
        cache, parts = None, []
        for part in tokens.split([11, 1, 4, 7], dim=1):
            with torch.no_grad():
                out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        assert_close(torch.cat(parts, dim=1), whole, **EXACT)
        assert torch.equal(generate(model, tokens), generate(model, tokens, use_cache=False))

    def test_may_be_static(self, fused, tokens):
        model = load(fused)
        assert torch.equal(generate(model, tokens), generate(model, tokens, cache_implementation="static"))

    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    def test_left_padding_is_exact(self, request, value_path, tokens):
        model = load(request.getfixturevalue(value_path))
        short = tokens[1:, :9]
        padded = tokens.clone()
        padded[1] = torch.cat((torch.zeros(14, dtype=torch.long), short[0]))
        mask = torch.ones_like(padded)
        mask[1, :14] = 0
        assert_close(logits(model, padded, attention_mask=mask)[1, 14:], logits(model, short)[0], **EXACT)
        together = generate(model, padded, attention_mask=mask)
        assert torch.equal(together[0], generate(model, tokens[:1])[0])
        assert torch.equal(together[1, 14:], generate(model, short)[0])

    def test_packed_sequences_do_not_see_each_other(self, fused, tokens):
        model = load(fused)
        positions = torch.cat((torch.arange(9), torch.arange(14)))[None]
        packed = logits(model, tokens[:1], position_ids=positions, use_cache=False)
        assert_close(packed[:, 9:], logits(model, tokens[:1, 9:]), **EXACT)

    def test_continuous_batching_is_refused_at_the_call(self, fused, tokens):
        with pytest.raises(ValueError, match="generate_batch .* keep pages of keys, .*; use generate, or serve"):
            load(fused).generate_batch(tokens.tolist(), max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "top_k": 20, "temperature": 0.7},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_generation_equals_the_oracle(base, fused, tokens, options):
    oracle = truncated(base / "qwen2", **RANKS)
    assert torch.equal(generate(load(fused), tokens, **options), generate(oracle, tokens, **options))


@pytest.mark.parametrize("assistant", ["itself", "dense", "prompt"])
def test_assisted_generation_equals_greedy(base, fused, tokens, assistant):
    model = load(fused)
    helpers = {
        "itself": {"assistant_model": load(fused)},
        "dense": {"assistant_model": load(base / "qwen2")},  # often wrong, so the cache is cropped
        "prompt": {"prompt_lookup_num_tokens": 3},
    }
    prompt = tokens[:1]
    assert torch.equal(generate(model, prompt, **helpers[assistant]), generate(model, prompt))


class TestTraining:
    def test_gradients_equal_the_oracle(self, base, fused, tokens):
        model, oracle = load(fused), truncated(base / "qwen2", **RANKS)
        for each in (model, oracle):
            each(tokens, labels=tokens).loss.backward()
        theirs = dict(oracle.named_parameters())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            if name in theirs and "o_proj" not in name:
                assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)

    def test_gradients_reach_every_factor(self, factored, tokens):
        model = load(factored)
        model(tokens, labels=tokens).loss.backward()
        for name in ("k_up", "v_up", "k_bias", "k_down.weight", "v_down.weight"):
            assert model.model.layers[0].self_attn.get_parameter(name).grad.abs().max() > 0, name

    def test_checkpointing_changes_nothing(self, fused, tokens):
        plain, checkpointed = load(fused), load(fused)
        checkpointed.gradient_checkpointing_enable()
        for model in (plain, checkpointed):
            model.train()
            model(tokens, labels=tokens, use_cache=False).loss.backward()
        for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
            assert_close(one.grad, other.grad)
