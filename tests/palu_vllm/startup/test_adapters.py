"""Names of adapters' tensors: those that fit pass unchanged, the others end in one sentence."""

import pytest

from palu_vllm.format.checkpoint import read_json
from palu_vllm.startup.adapters import AdapterNames
from palu_vllm.startup.served import ServedConfig

NAME = "base_model.model.model.layers.0.{}.lora_A.weight"


@pytest.mark.parametrize(
    ("module", "fused", "sentence"),
    [
        ("self_attn.k_proj", False, "merge the adapter into the model before palu-compress"),
        ("self_attn.v_proj", False, "train one without v_proj"),
        ("self_attn.qkv_proj", False, "low-rank factors"),
        ("self_attn.o_proj", True, "train an adapter without o_proj"),
        ("self_attn.v_down", False, "may have q_proj, o_proj"),
        ("mlp.gate_up_proj", False, "may have q_proj, o_proj"),
    ],
)
def test_names(module, fused, sentence):
    names = AdapterNames(fused=fused)
    with pytest.raises(ValueError, match=sentence) as refused:
        names.map_name(NAME.format(module))
    assert str(refused.value).endswith(".")
    for kept in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        assert names.map_name(NAME.format(kept)) == NAME.format(kept)


def test_the_models_own_tensors_are_no_adapters():
    assert AdapterNames(fused=True).map_name("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(("rank_v", "fused"), [(64, False), ((64, 16), True)])
def test_whole_values_keep_their_output_projection(palu, rank_v, fused):
    config = read_json(palu("llama", 32, rank_v) / "config.json")
    names = AdapterNames.of(ServedConfig.of(config, {}, "float32"))
    assert (names.fused, names.mixed) == (fused, False)


def test_whole_values_that_are_mixed_take_no_adapter_of_the_original(palu):
    config = read_json(palu("llama", 32, 64) / "config.json")
    config["palu_config"]["hadamard"] = True
    with pytest.raises(ValueError, match="whole takes them mixed; serve the model without mixed latents"):
        AdapterNames.of(ServedConfig.of(config, {}, "float32")).map_name(NAME.format("self_attn.o_proj"))
