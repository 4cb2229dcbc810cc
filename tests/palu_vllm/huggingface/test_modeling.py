"""A compressed model computes what a dense model with low-rank weights computes."""

import pytest
import torch
from torch.testing import assert_close

from tests.palu_vllm.huggingface.oracle import CLASSES, EXACT, FULL_RANK, RANKS, generate, load, logits, truncated
from tests.support.plain_svd import build_palu
from tests.support.tiny_models import build_small


class TestEqualsDense:
    @pytest.mark.parametrize("family", CLASSES)
    def test_at_full_rank(self, base, tmp_path, tokens, family):
        dense, model = load(base / family), load(build_palu(base / family, tmp_path / "palu", FULL_RANK, FULL_RANK))
        assert type(model) is CLASSES[family]
        assert not model.training
        assert_close(logits(model, tokens), logits(dense, tokens), rtol=0, atol=1e-5)
        assert torch.equal(generate(model, tokens), generate(dense, tokens))

    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    @pytest.mark.parametrize("family", CLASSES)
    def test_with_low_rank_weights(self, base, tmp_path, tokens, family, value_path):
        oracle = truncated(base / family, **RANKS)
        model = load(build_palu(base / family, tmp_path / "palu", **RANKS, value_path=value_path))
        assert_close(logits(model, tokens), logits(oracle, tokens), **EXACT)
        assert torch.equal(generate(model, tokens), generate(oracle, tokens))
        difference = (logits(load(base / family), tokens) - logits(oracle, tokens)).abs().max()
        assert difference > 0.1  # the truncation shows, so the comparison says something

    @pytest.mark.parametrize("group_size", [1, 4])
    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    def test_with_other_groups(self, base, tmp_path, tokens, group_size, value_path):
        ranks = {"rank_k": [6 * group_size] * 2, "rank_v": [5 * group_size] * 2}
        oracle = truncated(base / "llama", **ranks, group_width=16 * group_size)
        model = load(build_palu(base / "llama", tmp_path / "p", **ranks, group_size=group_size, value_path=value_path))
        assert_close(logits(model, tokens), logits(oracle, tokens), **EXACT)

    @pytest.mark.parametrize("family", ["qwen2", "qwen3"])
    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    @pytest.mark.parametrize("sizes", [(1, 4), (2, 4), (4, 2)])
    def test_with_groups_of_keys_and_values_apart(self, base, tmp_path, tokens, family, sizes, value_path):
        full_k, full_v = (16 * size for size in sizes)
        ranks = {"rank_k": [6 * sizes[0], full_k], "rank_v": [full_v, 5 * sizes[1]]}  # whole keys, whole values
        oracle = truncated(base / family, **ranks, group_width=full_k, group_width_v=full_v)
        model = load(build_palu(base / family, tmp_path / "p", **ranks, group_size=sizes, value_path=value_path))
        assert_close(logits(model, tokens), logits(oracle, tokens), **EXACT)
        assert torch.equal(generate(model, tokens), generate(oracle, tokens))

    @pytest.mark.parametrize("sizes", [(1, 4), (4, 2)])
    def test_at_full_rank_with_groups_apart(self, base, tmp_path, tokens, sizes):
        ranks = {"rank_k": 16 * sizes[0], "rank_v": 16 * sizes[1]}
        model = load(build_palu(base / "llama", tmp_path / "p", **ranks, group_size=sizes))
        assert_close(logits(model, tokens), logits(load(base / "llama"), tokens), rtol=0, atol=1e-5)

    def test_with_biases_everywhere(self, tmp_path, tokens):
        dense = build_small(tmp_path / "dense", "llama", attention_bias=True, mlp_bias=True)
        model = load(build_palu(dense, tmp_path / "palu", **RANKS))
        assert_close(logits(model, tokens), logits(truncated(dense, **RANKS), tokens), **EXACT)

    def test_with_tied_embeddings(self, tmp_path, tokens):
        dense = build_small(tmp_path / "dense", "llama", tie_word_embeddings=True)
        model = load(build_palu(dense, tmp_path / "palu", **RANKS))
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert_close(logits(model, tokens), logits(truncated(dense, **RANKS), tokens), **EXACT)

    @pytest.mark.parametrize(
        "rope",
        [
            {"rope_type": "linear", "factor": 3.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ],
        ids=lambda rope: rope["rope_type"],
    )
    def test_with_scaled_rotary_embedding(self, tmp_path, tokens, rope):
        dense = build_small(tmp_path / "dense", "llama", rope_parameters=rope | {"rope_theta": 1e4})
        model = load(build_palu(dense, tmp_path / "palu", **RANKS))
        assert_close(logits(model, tokens), logits(truncated(dense, **RANKS), tokens), **EXACT)

    @pytest.mark.parametrize(
        ("family", "window"),
        [
            ("mistral", {"sliding_window": 6}),
            ("phi3", {"sliding_window": 6}),
            ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ],
    )
    def test_with_a_sliding_window(self, tmp_path, tokens, family, window):
        dense = build_small(tmp_path / "dense", family, **window)
        oracle, model = truncated(dense, **RANKS), load(build_palu(dense, tmp_path / "palu", **RANKS))
        assert_close(logits(model, tokens), logits(oracle, tokens), **EXACT)
        assert torch.equal(generate(model, tokens), generate(oracle, tokens))
        cache = model(tokens).past_key_values
        assert cache.layers[1].keys.shape[2] == 5
        assert_close(logits(model, tokens, past_key_values=cache), logits(oracle, tokens.repeat(1, 2))[:, 23:], **EXACT)

    def test_in_eager_attention_with_probabilities(self, base, fused, tokens):
        oracle = truncated(base / "qwen2", **RANKS)
        oracle.set_attn_implementation("eager")
        model = load(fused, attn_implementation="eager")
        ours, theirs = (m(tokens, output_attentions=True, output_hidden_states=True) for m in (model, oracle))
        assert len(ours.attentions) == len(theirs.attentions) == 2
        for pair in zip(ours.attentions + ours.hidden_states, theirs.attentions + theirs.hidden_states, strict=True):
            assert_close(*pair, **EXACT)


def test_fused_equals_factored(fused, factored, tokens):
    assert_close(logits(load(fused), tokens), logits(load(factored), tokens), **EXACT)
