"""Whole compressions of tiny models, against an independent computation of attention."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offline_compress import compress
from palu_vllm.format.checkpoint import (
    INDEX,
    SINGLE,
    check_finite,
    check_shapes,
    iterate_tensors,
    read_config,
    read_json,
)
from tests.offline_compress.oracle import dense_attention, latent_attention, shape_of
from tests.support.joined import apart
from tests.support.tiny_models import build_even

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
QUICK = {"calib_samples": 6, "calib_seqlen": 48}


def of_rank(weight: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).float().contiguous()


def low_rank_model(directory: Path, family: str, rank: int, **overrides) -> Path:
    """A dense model whose key and value projections have exactly ``rank`` ranks."""
    build_even(directory, family, head_dim=32, **overrides)
    tensors = load_file(directory / SINGLE)
    for name, tensor in tensors.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            tensors[name] = of_rank(tensor, rank)
        elif name.endswith("qkv_proj.weight"):
            query, key, value = tensor.split([len(tensor) // 2, len(tensor) // 4, len(tensor) // 4])
            tensors[name] = torch.cat([query, of_rank(key, rank), of_rank(value, rank)])
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("value_path", ["fused", "factored"])
@pytest.mark.parametrize(
    ("family", "group_size", "overrides"),
    [
        ("llama", 1, {}),
        ("llama", 2, {"attention_bias": True}),
        ("mistral", 4, {}),
        ("qwen2", 2, {}),
        ("qwen2", 4, {"num_attention_heads": 4}),
        ("qwen3", 2, {}),
        ("phi3", 2, {}),
    ],
)
def test_nothing_is_lost_where_the_weights_have_that_rank(tmp_path, text, family, group_size, overrides, value_path):
    model = low_rank_model(tmp_path / "model", family, 16, **overrides)
    report = compress(
        model, tmp_path / "out", rank_ratio=0.5 / group_size, group_size=group_size, search="uniform",
        value_path=value_path, calib_data=text, **QUICK,
    )  # fmt: skip
    assert report["rank_k"] == report["rank_v"] == [16, 16]
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0)).double()
    for layer in range(2):
        shape = shape_of(tmp_path / "out", layer)
        assert shape.value_path == value_path
        expected = dense_attention(model, layer, shape, x)
        torch.testing.assert_close(latent_attention(tmp_path / "out", layer, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value_path", ["fused", "factored"])
@pytest.mark.parametrize(("sizes", "options"), [((1, 4), {"latent_bits": 16}), ((4, 2), {"hadamard": True})])
def test_nothing_is_lost_in_groups_apart(tmp_path, text, sizes, options, value_path):
    """A rank of 16 in K and V: half of a head, an eighth of all heads."""
    model = low_rank_model(tmp_path / "model", "qwen2", 16)
    kept = (16 * 4 // sizes[0] + 16 * 4 // sizes[1]) / 256
    report = compress(
        model, tmp_path / "out", rank_ratio=kept, group_size_k=sizes[0], group_size_v=sizes[1], search="energy",
        objective="whiten", value_path=value_path, calib_data=text, **options, **QUICK,
    )  # fmt: skip
    assert report["rank_k"] == report["rank_v"] == [16, 16]
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0)).double()
    for layer in range(2):
        expected = dense_attention(model, layer, shape_of(tmp_path / "out", layer), x)
        torch.testing.assert_close(latent_attention(tmp_path / "out", layer, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["svd", "whiten"])
def test_fused_and_factored_give_the_same_output(tmp_path, text, dense, objective):
    options = {"objective": objective, "search": "uniform", "calib_data": text, **QUICK}
    for path in ("fused", "factored"):
        compress(dense("qwen2"), tmp_path / path, value_path=path, **options)
    x = torch.randn(9, 64).double()
    outputs = [latent_attention(tmp_path / path, 1, x) for path in ("fused", "factored")]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "groups"), [*((family, {}) for family in FAMILIES), ("qwen2", {"group_size_k": 1})])
def test_full_rank_keeps_every_weight_bit_for_bit(tmp_path, dense, family, groups):
    compress(dense(family), tmp_path / "out", rank_ratio=1, **groups)
    config = read_json(dense(family) / "config.json")
    before, after = apart(dict(iterate_tensors(dense(family))), config), dict(iterate_tensors(tmp_path / "out"))
    renamed = {"k_down.weight": "k_proj.weight", "v_down.weight": "v_proj.weight", "k_bias": "k_proj.bias"}
    for name, tensor in after.items():
        stem, _, last = name.partition("self_attn.")
        if last == "o_proj.bias":
            continue
        assert torch.equal(tensor, before[stem + "self_attn." + renamed[last] if last in renamed else name]), name
    assert not [name for name in after if name.endswith("_up")]
    x = torch.randn(9, 64).double()
    expected = dense_attention(dense(family), 0, shape_of(tmp_path / "out", 0), x)
    torch.testing.assert_close(latent_attention(tmp_path / "out", 0, x), expected, rtol=1e-5, atol=1e-5)


def test_the_output_is_a_checked_checkpoint_with_everything_beside_it(tmp_path, text, dense):
    out = tmp_path / "out"
    compress(dense("llama"), out, search="fisher", calib_data=text, **QUICK)
    check_shapes(out)
    check_finite(out)
    config, palu, _ = read_config(out)
    assert config["model_type"] == "palu_llama"
    assert config["architectures"] == ["PaluLlamaForCausalLM"]
    assert palu.calibration.startswith("calibration.txt, 6 samples of 48 tokens, sha256 ")
    names = {path.name for path in out.iterdir()}
    assert {"config.json", SINGLE, "README.md", "palu_report.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"tokenizer_config.json", "generation_config.json"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_everything_else_passes_through_unchanged(tmp_path, dense):
    compress(dense("llama"), tmp_path / "out", objective="svd", search="uniform")
    before, after = dict(iterate_tensors(dense("llama"))), dict(iterate_tensors(tmp_path / "out"))
    others = [name for name in before if ".self_attn." not in name]
    assert others
    assert all(torch.equal(after[name], before[name]) for name in others)


def test_shards_in_and_shards_out(tmp_path, text, monkeypatch):
    whole = build_even(tmp_path / "whole")
    sharded = build_even(tmp_path / "sharded", max_shard_size="60KB")
    assert not (sharded / SINGLE).exists()
    options = {"search": "uniform", "calib_data": text, **QUICK}
    compress(whole, tmp_path / "a", **options)
    monkeypatch.setattr("offline_compress.pipeline.MAX_SHARD_BYTES", 80_000)
    compress(sharded, tmp_path / "b", **options)
    assert (tmp_path / "b" / INDEX).exists()
    one, other = dict(iterate_tensors(tmp_path / "a")), dict(iterate_tensors(tmp_path / "b"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_same_inputs_give_the_same_bytes(tmp_path, text, dense):
    for name in ("a", "b"):
        compress(dense("llama"), tmp_path / name, search="fisher_uniform", calib_data=text, **QUICK)
    for name in (SINGLE, "config.json", "README.md", "palu_report.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_of_the_output(tmp_path, dense, dtype):
    report = compress(dense("llama"), tmp_path / "out", objective="svd", search="uniform", dtype=dtype)
    tensors = dict(iterate_tensors(tmp_path / "out"))
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert read_config(tmp_path / "out")[0]["dtype"] == dtype
    assert report["dense_bytes_per_token"] == 2 * 2 * 64 * getattr(torch, dtype).itemsize


def test_a_half_precision_model_stays_one_and_is_computed_in_float32(tmp_path, text):
    model = build_even(tmp_path / "model", dtype="bfloat16")
    report = compress(model, tmp_path / "out", calib_data=text, **QUICK)
    assert {tensor.dtype for _, tensor in iterate_tensors(tmp_path / "out")} == {torch.bfloat16}
    assert report["dtype"] == "bfloat16"


def test_an_error_in_the_middle_leaves_nothing(tmp_path, text, dense):
    def stop(event: dict) -> None:
        if event["event"] == "layer":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(dense("llama"), tmp_path / "out", calib_data=text, on_event=stop, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_an_older_output(tmp_path, dense):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    compress(dense("llama"), tmp_path / "out", rank_ratio=1, overwrite=True)
    assert not (tmp_path / "out" / "old").exists()
    check_shapes(tmp_path / "out")


def test_dry_run_tells_and_writes_nothing(tmp_path, text, dense):
    options = {"search": "uniform", "calib_data": text, **QUICK}
    estimate = compress(dense("llama"), tmp_path / "out", dry_run=True, **options)
    assert list(tmp_path.iterdir()) == []
    report = compress(dense("llama"), tmp_path / "out", **options)
    shared = estimate.keys() & report.keys()
    assert {"rank_k", "rank_v", "bytes_per_token", "dense_bytes_per_token", "value_path_bytes"} <= shared
    assert all(estimate[key] == report[key] for key in shared)
    written = sum(tensor.nbytes for _, tensor in iterate_tensors(tmp_path / "out"))
    assert estimate["disk_bytes"] == written
    assert estimate["predicted_peak_memory_bytes"] > 0


def test_events_tell_ranks_errors_seconds_and_memory(tmp_path, text, dense):
    events = []
    options = {"search": "fisher_uniform", "calib_data": text, **QUICK}
    report = compress(dense("llama"), tmp_path / "out", on_event=events.append, **options)
    layers = [event for event in events if event["event"] == "layer"]
    assert [event["rank_k"] for event in layers] == report["rank_k"]
    assert [event["relative_error_v"] for event in layers] == report["relative_error_v"]
    assert all({"seconds", "resident_bytes"} <= event.keys() for event in layers)
    assert [event["seconds"] for event in layers] == report["layer_seconds"]
    assert 0 < sum(report["layer_seconds"]) < report["seconds"] + 0.01
    assert len([event for event in events if event["event"] == "fisher"]) == 6
    assert json.loads(json.dumps(events)) == events
