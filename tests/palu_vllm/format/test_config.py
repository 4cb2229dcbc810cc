"""What ``palu_config`` may say, and the sentence for everything else."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from palu_vllm.format.config import AttentionGeometry, PaluConfig, rope_type, rotary_positions
from palu_vllm.format.latent_format import LatentFormat, Tier

MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
PALU = {
    "format_version": 1,
    "base_model": "some/model",
    "base_revision": None,
    "group_size_k": 2,
    "group_size_v": 2,
    "rank_k": [8, 32],
    "rank_v": [12, 32],
    "value_path": "fused",
    "attention_bias": False,
    "objective": "svd",
    "search": "uniform",
    "calibration": "none",
    "seed": 0,
    "tool_version": "tests",
}


WHOLE = [{"share": 1.0, "bits": 16}]
UNSET = {
    "qk_norm": False,
    "latent_group_size": 0,
    "latent_symmetric": False,
    "clip_k": None,
    "clip_v": None,
    "source_layers": None,
}


def read(**changes) -> PaluConfig:
    return PaluConfig.from_hf_config(MODEL | {"palu_config": PALU | changes})


def test_round_trip_through_json():
    palu = read()
    assert palu.model_dump() == PALU | {"tiers_k": WHOLE, "tiers_v": WHOLE, "hadamard": False} | UNSET
    again = PaluConfig.from_hf_config(MODEL | {"palu_config": json.loads(palu.model_dump_json())})
    assert again == palu


def test_bytes_per_token_count_scales_and_padding():
    geometry = AttentionGeometry.from_hf_config(MODEL)
    assert read().bytes_per_token(geometry, "float16") == 2 * 2 * (8 + 32 + 12 + 32)
    four = read(tiers_k=[{"share": 1.0, "bits": 4}], tiers_v=[{"share": 1.0, "bits": 2}])
    key, value = (4 + 4) + (4 + 16), (4 + 4) + (4 + 8)  # 3 bytes of 12 numbers in 2 bits are padded to 4
    assert four.bytes_per_token(geometry, "float16") == 2 * (key + value)
    assert read().slot_format(0, "float16") is None
    assert four.slot_format(1, "float16").bytes == 20 + 12


def test_groups_symmetric_codes_and_clip_ratios_are_in_the_formats():
    four = [{"share": 1.0, "bits": 4}]
    palu = read(tiers_k=four, tiers_v=four, latent_group_size=16, latent_symmetric=True, clip_k=[0.5, 1])
    key, value = palu.key_format(1, "float16"), palu.value_format(0, "float16")
    assert key == LatentFormat((Tier(16, 4),) * 2, "float16", symmetric=True, clip=1.0)
    assert value == LatentFormat((Tier(12, 4),), "float16", symmetric=True)
    assert palu.key_format(0, "float16").clip == 0.5 and palu.key_tiers(1) == (Tier(32, 4),)
    assert palu.slot_format(1, "float16").bytes == 2 * (2 * 2 + 16)


@pytest.mark.parametrize(("sizes", "rank_k"), [((2, 4), [8, 32]), ((1, 4), [8, 16]), ((4, 1), [8, 64])])
def test_groups_of_k_and_v_apart(sizes, rank_k):
    geometry = AttentionGeometry.from_hf_config(MODEL)
    groups = [4 // size for size in sizes]
    changes = {"group_size_k": sizes[0], "group_size_v": sizes[1], "rank_k": rank_k, "rank_v": [12, 16]}
    palu = read(**changes)
    assert palu.bytes_per_token(geometry, "float16") == 2 * (groups[0] * sum(rank_k) + groups[1] * (12 + 16))
    assert (palu.group_size, palu.num_groups(geometry)) == (4, 1)
    assert palu.group_sizes == f"group size {sizes[0]} in K and {sizes[1]} in V"


def test_it_cannot_be_changed():
    with pytest.raises(ValidationError):
        read().seed = 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank_q": [1, 1]}, "not valid at rank_q: Extra inputs"),
        ({"format_version": 2}, "not valid at format_version: Input should be 1"),
        ({"seed": "0"}, "not valid at seed: Input should be a valid integer"),
        ({"base_model": None}, "not valid at base_model: Input should be a valid string"),
        ({"value_path": "both"}, "not valid at value_path: Input should be 'fused' or 'factored'"),
        ({"rank_k": [8, True]}, r"not valid at rank_k\.1: Input should be a valid integer"),
        ({"rank_k": [8, 8.0]}, r"not valid at rank_k\.1: Input should be a valid integer"),
        ({"rank_k": [], "rank_v": []}, "not valid at rank_k: List should have at least 1 item"),
        ({"rank_k": [8, 0]}, "a rank is below 1"),
        ({"rank_k": [8]}, "rank_k has 1 layers and rank_v 2; expected equal"),
        ({"rank_k": [8] * 3, "rank_v": [8] * 3}, "ranks for 3 layers, the model has 2"),
        ({"rank_v": [12, 33]}, "rank 33 is above the full rank 32 of a group"),
        ({"group_size_k": 0, "group_size_v": 0}, "not valid at group_size_k"),
        ({"group_size_v": 3}, "neither of group_size_k 2 and group_size_v 3 divides the other"),
        ({"group_size_v": 1}, "rank 32 is above the full rank 16 of a group"),
        ({"group_size_k": 3, "group_size_v": 3}, "group size 3 does not divide 4 key-value heads"),
        ({"tiers_k": []}, "not valid at tiers_k: List should have at least 1 item"),
        ({"tiers_k": [{"share": 1.0, "bits": 5}]}, "have bits other than 16, 8, 4, 3, 2"),
        ({"tiers_v": [{"share": 0.5, "bits": 8}]}, "do not add up to 1"),
        ({"latent_group_size": 24}, "latent group size 24 is not 0 or a positive multiple of 16"),
        ({"latent_group_size": -16}, "latent group size -16 is not 0 or"),
        ({"latent_symmetric": 1}, "not valid at latent_symmetric: Input should be a valid boolean"),
        ({"clip_k": [1.0]}, "clip_k has 1 layers and rank_k 2; expected equal"),
        ({"clip_v": [1.0, 1.1]}, r"clip_v has a clip ratio outside \(0, 1\]"),
        ({"clip_k": [0.0, 1.0]}, r"clip_k has a clip ratio outside \(0, 1\]"),
        ({"clip_k": [float("nan"), 1.0]}, r"clip_k has a clip ratio outside \(0, 1\]"),
        ({"tiers_v": [{"share": 0.5, "bits": 4}, {"share": 0.5, "bits": 8}]}, "expected fewer or as many"),
    ],
)
def test_refused_section(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        read(**changes)
    message = str(refusal.value)
    if "\n" in message or not message.endswith("."):
        pytest.fail(f"not one sentence: {message}")


@pytest.mark.parametrize("key", sorted(PALU.keys() - {"format_version", "base_revision", "attention_bias"}))
def test_refused_missing_key(key):
    section = {name: value for name, value in PALU.items() if name != key}
    with pytest.raises(ValueError, match=f"not valid at {key}: Field required"):
        PaluConfig.from_hf_config(MODEL | {"palu_config": section})


@pytest.mark.parametrize("section", [None, [], "palu"])
def test_refused_without_section(section):
    with pytest.raises(ValueError, match="no palu_config section; expected a checkpoint written by palu-compress"):
        PaluConfig.from_hf_config(MODEL | {"palu_config": section})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": None}, "hidden_size=None; expected a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0; expected a positive integer"),
        ({"num_attention_heads": True}, "num_attention_heads=True; expected a positive integer"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads='4'; expected a positive integer"),
        ({"num_key_value_heads": 3}, "8 attention heads are not a multiple of 3 key-value heads"),
        ({"head_dim": -16}, "head_dim=-16; expected a positive integer"),
        ({"head_dim": 15}, "head_dim 15 is not an even number"),
    ],
)
def test_refused_geometry(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        AttentionGeometry.from_hf_config(MODEL | changes)


def test_geometry_defaults_are_those_of_transformers():
    model = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
    expected = AttentionGeometry(64, 2, num_heads=8, num_kv_heads=8, head_dim=8)
    assert AttentionGeometry.from_hf_config(model) == expected
    assert AttentionGeometry.from_hf_config(model | {"num_key_value_heads": None, "head_dim": None}) == expected


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_bytes_per_token(dtype, size):
    geometry = AttentionGeometry.from_hf_config(MODEL)
    assert geometry.dense_bytes_per_token(dtype) == 2 * 2 * 4 * 16 * size
    assert read().bytes_per_token(geometry, dtype) == 2 * (8 + 32 + 12 + 32) * size


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, "default"),
        ({"rope_scaling": None}, "default"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
    ],
)
def test_rope_types(config, kind):
    assert rope_type(config) == kind


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"rope_scaling": {"type": "dynamic"}}, "rope type 'dynamic' is not supported; expected one of default"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not 1"),
        ({"rope_scaling": "linear"}, "rope parameters 'linear'; expected an object"),
    ],
)
def test_refused_rope(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        rope_type(config)


def test_config_imports_neither_torch_nor_transformers():
    code = "import sys, palu_vllm.format.config; sys.exit(bool({'torch', 'transformers', 'vllm'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


FIVE = MODEL | {"num_hidden_layers": 5}
ALIKE = {"rank_k": [8] * 5, "rank_v": [12] * 5}


def shared(source_layers: list[int], layer_types: list[str] | None = None, **changes) -> PaluConfig:
    section = PALU | ALIKE | {"source_layers": source_layers} | changes
    return PaluConfig.from_hf_config(FIVE | {"palu_config": section, "layer_types": layer_types})


def test_layers_that_share_hold_no_bytes():
    geometry = AttentionGeometry.from_hf_config(FIVE)
    palu = shared([0, 1, 0, 3, 1], rank_k=[8, 16, 8, 24, 16])
    assert (palu.caching_layers, palu.num_shared) == ([0, 1, 3], 2)
    assert [palu.source_layer(layer) for layer in range(5)] == [0, 1, 0, 3, 1]
    assert palu.bytes_per_token(geometry, "float16") == 2 * 2 * (8 + 16 + 24 + 3 * 12)
    alone = shared([0, 1, 2, 3, 4])
    assert (alone.caching_layers, alone.num_shared) == ([0, 1, 2, 3, 4], 0)
    assert alone.bytes_per_token(geometry, "float16") == 2 * 2 * 5 * 20
    assert json.loads(palu.model_dump_json())["source_layers"] == [0, 1, 0, 3, 1]


@pytest.mark.parametrize(
    ("source_layers", "changes", "sentence"),
    [
        ([0, 1, 2, 3], {}, "source_layers has 4 layers and rank_k 5; expected equal"),
        ([0, 2, 2, 3, 4], {}, "layer 1 reads the latents of layer 2; expected an earlier layer"),
        ([0, 1, -1, 3, 4], {}, "layer 2 reads the latents of layer -1; expected an earlier layer"),
        ([0, 0, 1, 3, 4], {}, "layer 2 reads the latents of layer 1, which holds none of its own"),
        (
            [0, 1, 0, 3, 4],
            {"rank_k": [8, 8, 16, 8, 8]},
            "layer 2 reads the latents of layer 0, but their rank_k differ",
        ),
        (
            [0, 1, 0, 3, 4],
            {"rank_v": [8, 8, 16, 8, 8]},
            "layer 2 reads the latents of layer 0, but their rank_v differ",
        ),
        ([0, 1, 0, 3, 4], {"clip_k": [1.0, 1.0, 0.9, 1.0, 1.0]}, "layer 0, but their clip_k differ"),
        ([0, 1, 0, 3, 4], {"clip_v": [1.0, 1.0, 0.9, 1.0, 1.0]}, "layer 0, but their clip_v differ"),
        ([0, 1, 0, 3, 4.0], {}, "valid integer"),
    ],
)
def test_source_layers_that_no_checkpoint_can_have(source_layers, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        shared(source_layers, **changes)


def test_a_window_is_not_shared_with_full_attention():
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert shared([0, 1, 0, 1, 0], kinds).num_shared == 3
    with pytest.raises(ValueError, match="layer 2 is of the kind full_attention and reads the latents of layer 1"):
        shared([0, 1, 1, 3, 4], kinds)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else None,
)
def test_rotary_positions_are_the_rows_of_vllms_table(rope, positions):
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    config = {"max_position_embeddings": 64, "rope_parameters": rope}
    assert rotary_positions(config) == positions
    told = {"rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | rope
    with set_current_vllm_config(VllmConfig()):
        table = get_rope(16, max_position=64, rope_parameters=told).cos_sin_cache
    assert len(table) == positions
