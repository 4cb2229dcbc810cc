"""Compressed checkpoints in transformers.

The oracle of a truncated model is a dense transformers model whose ``k_proj`` and ``v_proj`` are replaced by their
best approximations of that rank: the same mathematics without latents, and without this project's code.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from palu_vllm.checkpoint import CheckpointError
from palu_vllm.huggingface import modeling, register_auto_classes
from tests.palu_checkpoints import FULL_RANK, SIZES, kv_bytes, write_dense, write_palu

register_auto_classes()

CLASSES = {
    "llama": modeling.PaluLlamaForCausalLM,
    "mistral": modeling.PaluMistralForCausalLM,
    "qwen2": modeling.PaluQwen2ForCausalLM,
}
RANKS = {"rank_k": [8, 32], "rank_v": [20, 12]}  # different per layer and for K and V; one layer's keys stay whole
EXACT = {"rtol": 0, "atol": 3e-5}  # logits have a standard deviation of about 1


def load(directory: Path, **options):
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def low_rank(weight: torch.Tensor, rank: int, group_width: int) -> torch.Tensor:
    """Every group of rows replaced by its best approximation of ``rank``."""
    parts = []
    for part in weight.double().split(group_width):
        values, vectors = torch.linalg.eigh(part.T @ part)
        kept = vectors[:, values.argsort(descending=True)[:rank]]
        parts.append(part @ kept @ kept.T)
    return torch.cat(parts).float()


def truncated(dense: Path, rank_k: list[int], rank_v: list[int], group_width: int = FULL_RANK):
    """The dense model with keys and values of those ranks."""
    model = load(dense)
    for layer, k, v in zip(model.model.layers, rank_k, rank_v, strict=True):
        attention = layer.self_attn
        attention.k_proj.weight.data = low_rank(attention.k_proj.weight.data, k, group_width)
        attention.v_proj.weight.data = low_rank(attention.v_proj.weight.data, v, group_width)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from a second thread and wait for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("huggingface")
    for family in CLASSES:
        write_dense(family, directory / family)
    return directory


@pytest.fixture(scope="module")
def fused(base) -> Path:
    return write_palu(base / "qwen2", base / "qwen2-fused", **RANKS)


@pytest.fixture(scope="module")
def factored(base) -> Path:
    return write_palu(base / "qwen2", base / "qwen2-factored", **RANKS, value_path="factored")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (2, 23), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, tokens, **options) -> torch.Tensor:
    return model(tokens, **options).logits


def generate(model, tokens, **options) -> torch.Tensor:
    torch.manual_seed(5)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None} | options
    return model.generate(tokens, attention_mask=options.pop("attention_mask", torch.ones_like(tokens)), **options)


class TestEqualsDense:
    @pytest.mark.parametrize("family", CLASSES)
    def test_at_full_rank(self, base, tmp_path, tokens, family):
        dense, model = load(base / family), load(write_palu(base / family, tmp_path / "palu"))
        assert type(model) is CLASSES[family]
        assert not model.training
        assert_close(logits(model, tokens), logits(dense, tokens), rtol=0, atol=1e-5)
        assert torch.equal(generate(model, tokens), generate(dense, tokens))

    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    @pytest.mark.parametrize("family", CLASSES)
    def test_with_low_rank_weights(self, base, tmp_path, tokens, family, value_path):
        oracle = truncated(base / family, **RANKS)
        model = load(write_palu(base / family, tmp_path / "palu", **RANKS, value_path=value_path))
        assert_close(logits(model, tokens), logits(oracle, tokens), **EXACT)
        assert torch.equal(generate(model, tokens), generate(oracle, tokens))
        difference = (logits(load(base / family), tokens) - logits(oracle, tokens)).abs().max()
        assert difference > 0.1  # the truncation shows, so the comparison says something

    @pytest.mark.parametrize("group_size", [1, 4])
    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    def test_with_other_groups(self, base, tmp_path, tokens, group_size, value_path):
        ranks = {"rank_k": [6 * group_size] * 2, "rank_v": [5 * group_size] * 2}
        oracle = truncated(base / "llama", **ranks, group_width=16 * group_size)
        model = load(write_palu(base / "llama", tmp_path / "p", **ranks, group_size=group_size, value_path=value_path))
        assert_close(logits(model, tokens), logits(oracle, tokens), **EXACT)

    def test_with_biases_everywhere(self, tmp_path, tokens):
        dense = write_dense("llama", tmp_path / "dense", attention_bias=True, mlp_bias=True)
        model = load(write_palu(dense, tmp_path / "palu", **RANKS))
        assert_close(logits(model, tokens), logits(truncated(dense, **RANKS), tokens), **EXACT)

    def test_with_tied_embeddings(self, tmp_path, tokens):
        dense = write_dense("llama", tmp_path / "dense", tie_word_embeddings=True)
        model = load(write_palu(dense, tmp_path / "palu", **RANKS))
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
        dense = write_dense("llama", tmp_path / "dense", rope_parameters=rope | {"rope_theta": 1e4})
        model = load(write_palu(dense, tmp_path / "palu", **RANKS))
        assert_close(logits(model, tokens), logits(truncated(dense, **RANKS), tokens), **EXACT)

    @pytest.mark.parametrize(
        ("family", "window"),
        [
            ("mistral", {"sliding_window": 6}),
            ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ],
    )
    def test_with_a_sliding_window(self, tmp_path, tokens, family, window):
        dense = write_dense(family, tmp_path / "dense", **window)
        oracle, model = truncated(dense, **RANKS), load(write_palu(dense, tmp_path / "palu", **RANKS))
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


class TestCache:
    def test_holds_latents(self, fused, tokens):
        model = load(fused)
        cache = model(tokens).past_key_values
        for layer, rank_k, rank_v in zip(cache.layers, RANKS["rank_k"], RANKS["rank_v"], strict=True):
            assert layer.keys.shape == (2, 2, 23, rank_k)
            assert layer.values.shape == (2, 2, 23, rank_v)
        config = json.loads((fused / "config.json").read_text())
        palu = modeling.PaluConfig.from_hf_config(config)
        geometry = modeling.AttentionGeometry.from_hf_config(config)
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


def test_fused_equals_factored(fused, factored, tokens):
    assert_close(logits(load(fused), tokens), logits(load(factored), tokens), **EXACT)


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


class TestLoading:
    @pytest.mark.parametrize("value_path", ["fused", "factored"])
    def test_round_trip(self, request, value_path, tmp_path, tokens):
        directory = request.getfixturevalue(value_path)
        model = load(directory)
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
        again = load(tmp_path)
        before, after = (json.loads((d / "config.json").read_text()) for d in (directory, tmp_path))
        assert before["palu_config"] == after["palu_config"] == again.config.palu_config
        assert after["architectures"] == ["PaluQwen2ForCausalLM"]
        assert torch.equal(logits(model, tokens), logits(again, tokens))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.filterwarnings("ignore:TF32")
    @torch.backends.mkldnn.flags(enabled=False)  # oneDNN uses AMX where the processor names it, allowed or not
    def test_other_dtypes(self, fused, tokens, dtype):
        model = load(fused, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert {layer.keys.dtype for layer in model(tokens).past_key_values.layers} == {dtype}
        error = (logits(model, tokens).float() - logits(load(fused), tokens)).norm()
        assert error / logits(load(fused), tokens).norm() < (0.05 if dtype is torch.bfloat16 else 0.01)
        assert model.model.layers[0].self_attn.rotary_emb.inv_freq.dtype is torch.float32

    def test_loading_info_is_still_available(self, fused):
        model, info = load(fused, output_loading_info=True)
        assert isinstance(model, modeling.PaluQwen2ForCausalLM)
        assert not info["missing_keys"] and not info["unexpected_keys"]

    def test_random_weights_from_a_configuration(self, factored, tokens):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(factored))
        attention = model.model.layers[0].self_attn
        for factor in (attention.k_up, attention.v_up, attention.k_down.weight):
            assert 0.5 < factor.std() / SIZES["initializer_range"] < 1.5
        assert attention.k_bias.abs().max() == 0
        assert torch.isfinite(logits(model, tokens)).all()

    def test_what_cannot_be_split_is_not_offered(self, fused):
        model = load(fused)
        assert not model.supports_tp_plan
        assert not model._supports_attention_backend  # vLLM's wrapper of transformers models asks for it

    def test_dropout_only_in_training(self, base, tmp_path, tokens):
        dense = write_dense("llama", tmp_path / "dense", attention_dropout=0.5)
        model = load(write_palu(dense, tmp_path / "palu", **RANKS))
        assert torch.equal(logits(model, tokens), logits(model, tokens))
        model.train()
        assert not torch.equal(logits(model, tokens), logits(model, tokens))


class TestRefusals:
    def broken(self, fused: Path, out: Path, change=None, file="model.safetensors", **palu) -> Path:
        config = json.loads((fused / "config.json").read_text())
        config["palu_config"] |= palu
        tensors = load_file(fused / "model.safetensors")
        if change:
            change(tensors)
        out.mkdir()
        (out / "config.json").write_text(json.dumps(config))
        save_file(tensors, out / file, metadata={"format": "pt"})
        return out

    @pytest.mark.parametrize("option", [{}, {"variant": "odd"}], ids=["file", "what transformers reports"])
    def test_missing_tensor(self, fused, tmp_path, option):
        file = "model.odd.safetensors" if option else "model.safetensors"
        name = "model.layers.0.self_attn.k_up"
        broken = self.broken(fused, tmp_path / "b", lambda tensors: tensors.pop(name), file)
        with pytest.raises(CheckpointError, match=f"(lacks tensor|1 missing tensors,) {name}.*compress"):
            load(broken, **option)

    @pytest.mark.parametrize("option", [{}, {"variant": "odd"}], ids=["file", "what transformers reports"])
    def test_unexpected_tensor(self, fused, tmp_path, option):
        file = "model.odd.safetensors" if option else "model.safetensors"
        name = "model.layers.0.self_attn.k_proj.weight"
        broken = self.broken(fused, tmp_path / "b", lambda tensors: tensors.update({name: torch.zeros(2)}), file)
        with pytest.raises(CheckpointError, match=f"(the unexpected tensor|1 unexpected tensors,) {name}.*compress"):
            load(broken, **option)

    def test_wrong_shape(self, fused, tmp_path):
        name = "model.layers.0.self_attn.k_up"
        broken = self.broken(fused, tmp_path / "b", lambda tensors: tensors.update({name: torch.zeros(2, 7, 32)}))
        with pytest.raises(CheckpointError, match=rf"{name} has shape \[2, 7, 32\], expected \[2, 8, 32\]"):
            load(broken, ignore_mismatched_sizes=True)

    def test_palu_config_is_checked_when_a_model_is_built(self, fused, tmp_path):
        broken = self.broken(fused, tmp_path / "b", unknown_key=1)
        config = AutoConfig.from_pretrained(broken)
        assert config.palu_config["unknown_key"] == 1
        with pytest.raises(ValueError, match="not valid at unknown_key: Extra inputs"):
            AutoModelForCausalLM.from_config(config)
        with pytest.raises(CheckpointError, match="not valid at unknown_key: Extra inputs"):
            load(broken)

    def test_configuration_without_palu_config(self):
        with pytest.raises(ValueError, match="no palu_config section"):
            AutoModelForCausalLM.from_config(AutoConfig.for_model("palu_llama", **SIZES))

    @pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
    def test_rotary_embedding_that_depends_on_the_length(self, fused, rope_type):
        config = AutoConfig.from_pretrained(fused)
        config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0}
        with pytest.raises(ValueError, match=f"rope type '{rope_type}' is not supported"):
            AutoModelForCausalLM.from_config(config)

    @pytest.mark.parametrize("implementation", ["flex_attention", "flash_attention_2"])
    def test_attention_implementation(self, fused, implementation):
        with pytest.raises((ValueError, ImportError)):
            load(fused, attn_implementation=implementation)

    def test_paged_generation(self, fused, tokens):
        model = load(fused)
        model.config._attn_implementation = "paged|sdpa"
        with pytest.raises(ValueError, match=r"attn_implementation 'paged\|sdpa', expected eager or sdpa"):
            model(tokens)
