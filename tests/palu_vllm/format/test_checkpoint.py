"""A checkpoint on disk is exactly what its ``config.json`` says, or one sentence tells what is wrong with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from palu_vllm.format import checkpoint
from palu_vllm.format.checkpoint import INDEX, SINGLE, CheckpointError, all_finite, check_finite, check_shapes
from tests.support.plain_svd import build_palu
from tests.support.tiny_models import build_small

K_DOWN = "model.layers.0.self_attn.k_down.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("checkpoint")
    return build_palu(build_small(base / "dense", "qwen2"), base / "palu", rank_k=[8, 32], rank_v=[12, 32])


@pytest.fixture
def copy(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def rewrite(directory: Path, change) -> None:
    tensors = load_file(directory / SINGLE)
    change(tensors)
    save_file(tensors, directory / SINGLE)


def reconfigure(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def shard(directory: Path) -> dict[str, str]:
    """Splits the single file in two and returns the weight map."""
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"part-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_the_promised_names_are_exactly_those_written(written):
    config, palu, geometry = checkpoint.read_config(written)
    promised = checkpoint.attention_tensors(palu, geometry) | checkpoint.body_tensors(config, geometry)
    assert promised == checkpoint.checkpoint_shapes(written)


@pytest.mark.parametrize("value_path", ["fused", "factored"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("llama", {}),
        ("mistral", {}),
        ("qwen3", {}),
        ("phi3", {}),
    ],
)
def test_other_families_pass(tmp_path, family, changes, value_path):
    dense = build_small(tmp_path / "dense", family, **changes)
    check_shapes(build_palu(dense, tmp_path / "palu", 8, 12, group_size=4, value_path=value_path))


def test_norms_that_the_configuration_does_not_mention_are_refused(tmp_path):
    directory = build_palu(build_small(tmp_path / "dense", "qwen3"), tmp_path / "palu", 8, 12)
    section = checkpoint.read_json(directory / "config.json")["palu_config"]
    reconfigure(directory, palu_config=section | {"qk_norm": False})
    with pytest.raises(CheckpointError, match="unexpected tensor model.layers.0.self_attn.k_norm.weight"):
        check_shapes(directory)


def test_shards_hold_the_same_tensors_as_one_file(copy):
    whole = dict(checkpoint.iterate_tensors(copy))
    shard(copy)
    check_shapes(copy)
    parts = dict(checkpoint.iterate_tensors(copy))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_tied_embeddings_need_no_output_layer(tmp_path):
    dense = build_small(tmp_path / "dense", "llama", tie_word_embeddings=True)
    palu = build_palu(dense, tmp_path / "palu", 8, 8)
    check_shapes(palu)
    rewrite(palu, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    check_shapes(palu)
    rewrite(palu, lambda t: t.update({"lm_head.weight": torch.zeros(3, 64)}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \[3, 64\], expected \[300, 64\]"):
        check_shapes(palu)


@pytest.mark.parametrize(
    "name",
    [
        K_DOWN,
        "model.layers.0.self_attn.k_up",
        "model.layers.1.self_attn.k_bias",
        "model.layers.1.self_attn.o_proj.bias",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
class TestOneTensor:
    def test_refused_if_missing(self, copy, name):
        rewrite(copy, lambda tensors: tensors.pop(name))
        with pytest.raises(CheckpointError, match=f"lacks tensor {name}; compress the model again"):
            check_shapes(copy)

    def test_refused_in_another_shape(self, copy, name):
        rewrite(copy, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
        with pytest.raises(CheckpointError, match=rf"{name} has shape \[.*\], expected \[.*\]; compress"):
            check_shapes(copy)

    def test_refused_if_not_finite(self, copy, name):
        rewrite(copy, lambda tensors: tensors[name].view(-1)[-1:].fill_(float("nan")))
        with pytest.raises(CheckpointError, match=f"{name} in .* not finite"):
            check_finite(copy)


def test_finite_values_pass(written):
    check_finite(written)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 500, -1])
def test_all_finite_finds_one_number_among_many(dtype, place):
    numbers = torch.linspace(-400, 400, 1001).to(dtype)
    assert all_finite(numbers)
    for bad in (torch.nan, torch.inf, -torch.inf):
        damaged = numbers.to(torch.float64)
        damaged[place] = bad
        assert all_finite(damaged.to(dtype)) == bool(torch.isfinite(damaged.to(dtype).double()).all())


def test_integers_and_nothing_are_finite():
    assert all_finite(torch.arange(3)) and all_finite(torch.zeros(0))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.self_attn.k_up",  # this layer is stored uncompressed
        "model.layers.0.self_attn.v_up",  # the value path is fused
        "model.layers.2.self_attn.k_down.weight",
        "model.layers.0.mlp.up_proj.bias",
    ],
)
def test_refused_unexpected_tensor(copy, name):
    rewrite(copy, lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=f"unexpected tensor {name}; compress the model again"):
        check_shapes(copy)


def test_refused_tensor_that_the_index_does_not_list(copy):
    weight_map = shard(copy)
    file = copy / weight_map[K_DOWN]
    save_file(load_file(file) | {"stowaway": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="unexpected tensor stowaway"):
        check_shapes(copy)


@pytest.mark.parametrize("shard_name", ["../other/model.safetensors", "/etc/passwd", "..", ".", "", "a/b", "./x"])
def test_refused_shard_outside_the_directory(copy, shard_name):
    weight_map = shard(copy)
    (copy / INDEX).write_text(json.dumps({"weight_map": weight_map | {K_DOWN: shard_name}}))
    with pytest.raises(CheckpointError, match="names the shard .*; expected a plain file name"):
        check_shapes(copy)


@pytest.mark.parametrize("shard_name", ["gone.safetensors", "nul\0.safetensors"])
def test_refused_missing_shard(copy, shard_name):
    weight_map = shard(copy)
    (copy / INDEX).write_text(json.dumps({"weight_map": weight_map | {K_DOWN: shard_name}}))
    with pytest.raises(CheckpointError, match="is missing; fetch the checkpoint again"):
        check_shapes(copy)


def test_refused_tensor_that_its_shard_lacks(copy):
    weight_map = shard(copy)
    other = next(file for file in set(weight_map.values()) if file != weight_map[K_DOWN])
    (copy / INDEX).write_text(json.dumps({"weight_map": weight_map | {K_DOWN: other}}))
    with pytest.raises(CheckpointError, match=f"{other} lacks tensor {K_DOWN}, which the index says it holds"):
        check_shapes(copy)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", "\xff"])
def test_refused_index(copy, index):
    shard(copy)
    (copy / INDEX).write_bytes(index.encode("latin-1"))
    with pytest.raises(CheckpointError, match="has no weight_map|cannot be read as JSON|expected a JSON object"):
        check_shapes(copy)


def test_refused_two_sets_of_weights(copy):
    (copy / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="has both model.safetensors and .*; delete the one"):
        check_shapes(copy)


def test_refused_without_weights(copy):
    (copy / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="has neither .* nor .*; expected safetensors weights"):
        check_shapes(copy)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_refused_truncated_file(copy, kept):
    content = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match="not a readable safetensors file .*; fetch it again"):
        check_shapes(copy)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": None}, "config.json: config.json has vocab_size=None; expected a positive integer"),
        ({"intermediate_size": 0}, "intermediate_size=0; expected a positive integer"),
        ({"vocab_size": 301}, r"has shape \[300, 64\], expected \[301, 64\]"),
        ({"palu_config": None}, "no palu_config section"),
        ({"hidden_size": "64"}, "hidden_size='64'; expected a positive integer"),
    ],
)
def test_refused_config(copy, changes, sentence):
    reconfigure(copy, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        check_shapes(copy)


def test_refused_without_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be read as JSON .*; expected a model directory"):
        check_shapes(copy)


OPTIMIZED = """
import pathlib, sys
from palu_vllm.format.checkpoint import CheckpointError, check_finite, check_shapes
for directory in map(pathlib.Path, sys.argv[1:]):
    try:
        check_shapes(directory)
        check_finite(directory)
        print("accepted")
    except CheckpointError:
        print("refused")
"""


def test_refusals_do_not_rely_on_assertions(written, tmp_path):
    """The validators under ``python -O``, which drops assertions."""
    rank_above_full = json.loads((written / "config.json").read_text())["palu_config"] | {"rank_k": [8, 33]}
    breakages = {
        "none": lambda path: None,
        "missing": lambda path: rewrite(path, lambda tensors: tensors.pop(K_DOWN)),
        "unexpected": lambda path: rewrite(path, lambda tensors: tensors.update(stowaway=torch.zeros(2))),
        "shape": lambda path: rewrite(path, lambda tensors: tensors.update({K_DOWN: torch.zeros(2)})),
        "values": lambda path: rewrite(path, lambda tensors: tensors[K_DOWN].fill_(float("inf"))),
        "truncated": lambda path: (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:-1]),
        "ranks": lambda path: reconfigure(path, palu_config=rank_above_full),
        "heads": lambda path: reconfigure(path, num_key_value_heads=3),
    }
    for name, damage in breakages.items():
        damage(Path(shutil.copytree(written, tmp_path / name)))
    command = [sys.executable, "-O", "-c", OPTIMIZED, *(str(tmp_path / name) for name in breakages)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["accepted"] + ["refused"] * (len(breakages) - 1)
