"""What quantized layers are stored as, and the quantizations that are refused in one sentence."""

import json

import pytest
from compressed_tensors.quantization import preset_name_to_scheme

from palu_vllm.format.checkpoint import CheckpointError, check_shapes, expected_tensors, read_json
from palu_vllm.format.quantized import METHOD, stored_tensors

FACTORS = {"ignore": ["re:.*k_down", "re:.*v_down"]}
LAYER = "model.layers.0.self_attn."
EXPECTED = {
    f"{LAYER}q_proj.weight": (256, 128),
    f"{LAYER}q_proj.bias": (256,),
    f"{LAYER}k_down.weight": (64, 128),
    f"{LAYER}k_up": (2, 32, 64),
    "model.embed_tokens.weight": (512, 128),
    "lm_head.weight": (512, 128),
}


def section(name: str, stored: str, **changes: object) -> dict:
    """A ``quantization_config`` of the scheme that llm-compressor has under a name, stored in a format."""
    scheme = preset_name_to_scheme(name, ["Linear"]).model_dump(mode="json")
    return {"quant_method": METHOD, "format": stored, "config_groups": {"all": scheme | changes}}


W8A8 = section("W8A8", "int-quantized")
W4A16 = section("W4A16", "pack-quantized")


def stored(quantization: dict) -> dict:
    return stored_tensors(EXPECTED, {"quantization_config": quantization})


def test_nothing_changes_without_quantization():
    assert stored_tensors(EXPECTED, {}) == EXPECTED


def test_eight_bits_per_row():
    scales = {f"{LAYER}q_proj.weight_scale": (256, 1)}
    assert stored(W8A8 | {"ignore": [*FACTORS["ignore"], "lm_head"]}) == EXPECTED | scales


@pytest.mark.parametrize(("name", "words"), [("W4A16", 128 * 4 // 32), ("W8A16", 128 * 8 // 32)])
def test_packed_words(name, words):
    found = stored(section(name, "pack-quantized") | FACTORS)
    groups = 1 if name == "W8A16" else 128 // 128
    for module, rows in ((f"{LAYER}q_proj", 256), ("lm_head", 512)):
        assert f"{module}.weight" not in found
        assert found[f"{module}.weight_packed"] == (rows, words)
        assert found[f"{module}.weight_scale"] == (rows, groups)
        assert found[f"{module}.weight_shape"] == (2,)
    assert {name: found[name] for name in EXPECTED if name in found} == {
        name: shape for name, shape in EXPECTED.items() if not name.endswith(("q_proj.weight", "lm_head.weight"))
    }


def test_targets_by_name():
    found = stored(section("W8A8", "int-quantized", targets=["re:.*q_proj"]))
    assert found == EXPECTED | {f"{LAYER}q_proj.weight_scale": (256, 1)}


SMALL_GROUPS = {"weights": W4A16["config_groups"]["all"]["weights"] | {"group_size": 96}}
REFUSED = {
    "factors": (W8A8, 'with "re:.*k_down" and "re:.*v_down" in the ignore list'),
    "cache": (W8A8 | FACTORS | {"kv_cache_scheme": {"num_bits": 8}}, "has a kv_cache_scheme"),
    "float": (section("FP8_DYNAMIC", "float-quantized"), "stores weights as float-quantized"),
    "static inputs": (section("W8A8", "int-quantized", input_activations={"dynamic": False}), "int-quantized in a way"),
    "rotations": (W8A8 | {"transform_config": {"config_groups": {"u": {}}}}, "has transforms or sparsity"),
    "another method": ({"quant_method": "gptq", "bits": 4}, "weight quantization by gptq is not proven"),
    "groups": (section("W4A16", "pack-quantized", **SMALL_GROUPS) | FACTORS, "96 numbers do not divide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case):
    quantization, sentence = REFUSED[case]
    with pytest.raises(ValueError) as refused:
        stored(quantization)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_tensors_that_are_missing_are_found(palu, tmp_path):
    """vLLM's loaders accept some wrong shapes, so a directory is checked before them, quantized or not."""
    config = read_json(palu() / "config.json") | {"quantization_config": W8A8 | FACTORS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((palu() / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="lacks tensor .*weight_scale"):
        check_shapes(tmp_path)
    assert len(expected_tensors(config)) == len(expected_tensors(config | {"quantization_config": None})) + 2 * 5 + 1
