"""A checkpoint loads completely or is refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.huggingface import modeling
from tests.palu_vllm.huggingface.oracle import RANKS, load, logits
from tests.support.plain_svd import build_palu
from tests.support.tiny_models import SMALL, build_small


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

    @torch.no_grad()
    def test_auto_model_is_the_decoder(self, fused, tokens):
        decoder, model = AutoModel.from_pretrained(fused), load(fused)
        assert type(decoder) is modeling.PaluQwen2Model
        hidden = decoder(tokens).last_hidden_state
        assert torch.equal(hidden, model.model(tokens).last_hidden_state)
        assert torch.equal(model.lm_head(hidden), logits(model, tokens))

    def test_random_weights_from_a_configuration(self, factored, tokens):
        config = AutoConfig.from_pretrained(factored)
        model = AutoModelForCausalLM.from_config(config)
        attention = model.model.layers[0].self_attn
        for factor in (attention.k_up, attention.v_up, attention.k_down.weight):
            assert 0.5 < factor.std() / config.initializer_range < 1.5
        assert attention.k_bias.abs().max() == 0
        assert torch.isfinite(logits(model, tokens)).all()

    def test_what_cannot_be_split_is_not_offered(self, fused):
        model = load(fused)
        assert not model.supports_tp_plan
        assert not model._supports_attention_backend  # vLLM's wrapper of transformers models asks for it

    def test_dropout_only_in_training(self, base, tmp_path, tokens):
        dense = build_small(tmp_path / "dense", "llama", attention_dropout=0.5)
        model = load(build_palu(dense, tmp_path / "palu", **RANKS))
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

    @pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
    @pytest.mark.parametrize("option", [{}, {"variant": "odd"}], ids=["file", "what transformers reports"])
    def test_missing_tensor(self, fused, tmp_path, option, auto):
        file = "model.odd.safetensors" if option else "model.safetensors"
        inner = "layers.0.self_attn.k_up"
        broken = self.broken(fused, tmp_path / "b", lambda tensors: tensors.pop(f"model.{inner}"), file)
        with pytest.raises(CheckpointError, match=f"(lacks tensor|1 missing tensors,) (model.)?{inner}.*compress"):
            auto.from_pretrained(broken, **option)

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
            AutoModelForCausalLM.from_config(AutoConfig.for_model("palu_llama", **SMALL))

    @pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
    def test_rotary_embedding_that_depends_on_the_length(self, fused, rope_type):
        config = AutoConfig.from_pretrained(fused)
        config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0}
        with pytest.raises(ValueError, match=f"rope type '{rope_type}' is not supported"):
            AutoModelForCausalLM.from_config(config)

    @pytest.mark.parametrize("implementation", ["flex_attention", "flash_attention_2"])
    def test_attention_implementation(self, fused, implementation):
        expected = f"^attn_implementation '{implementation}' cannot attend to latents; choose eager or sdpa, or serve"
        with pytest.raises(ValueError, match=expected):
            load(fused, attn_implementation=implementation)

    def test_paged_generation(self, fused, tokens):
        model = load(fused)
        model.config._attn_implementation = "paged|sdpa"
        with pytest.raises(ValueError, match=r"attn_implementation 'paged\|sdpa', expected eager or sdpa"):
            model(tokens)
