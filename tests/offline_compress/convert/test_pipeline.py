"""A converted dump computes what the reference computes; what is no dump is one sentence and leaves nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from offline_compress.commands.convert import main
from offline_compress.convert.pipeline import ConvertOptions, convert
from palu_vllm.format.checkpoint import SINGLE, check_shapes, iterate_tensors, read_config
from tests.support.processes import forked
from tests.support.reference_dumps import reference_model, write_dump
from tests.support.tiny_models import build_even

# two layers, two groups of two heads of 16: equal ranks, unequal ones, some as wide as the group
EQUAL = {"k_proj": [[8, 8], [12, 12]], "v_proj": [[16, 16], [20, 20]]}
UNEQUAL = {"k_proj": [[8, 13], [32, 5]], "v_proj": [[20, 3], [7, 9]]}
WHOLE = {"k_proj": [[32, 32], [8, 8]], "v_proj": [[32, 30], [32, 32]]}
TOKENS = torch.randint(0, 256, (2, 21), generator=torch.Generator().manual_seed(3))
PREFIX = "model.layers.1.self_attn."


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def converted(dump, out, **options):
    return convert(ConvertOptions(dump, out, **options))


@pytest.mark.parametrize("value_path", ["fused", "factored"])
@pytest.mark.parametrize("ranks", [EQUAL, UNEQUAL, WHOLE], ids=["equal", "unequal", "whole"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_logits_are_those_of_the_reference(tmp_path, dense, family, ranks, value_path):
    report = converted(write_dump(dense(family), tmp_path / "dump", ranks), tmp_path / "out", value_path=value_path)
    check_shapes(tmp_path / "out")
    ours = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    theirs = logits(reference_model(dense(family), ranks))
    assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (theirs - logits(AutoModelForCausalLM.from_pretrained(dense(family)))).abs().max() > 0.1
    assert report["rank_k"] == [max(groups) for groups in ranks["k_proj"]]


def test_with_biases_everywhere_tied_embeddings_and_a_window(tmp_path):
    model = build_even(tmp_path / "llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    converted(write_dump(model, tmp_path / "a", UNEQUAL), tmp_path / "out-a")
    window = build_even(tmp_path / "mistral", "mistral", sliding_window=6)
    converted(write_dump(window, tmp_path / "b", UNEQUAL), tmp_path / "out-b")
    for source, out in ((model, "out-a"), (window, "out-b")):
        ours = logits(AutoModelForCausalLM.from_pretrained(tmp_path / out))
        assert_close(ours, logits(reference_model(source, UNEQUAL)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_other_groups(tmp_path, dense, groups):
    ranks = {"k_proj": [[6] * groups] * 2, "v_proj": [[9] * groups] * 2}
    converted(write_dump(dense("llama"), tmp_path / "dump", ranks), tmp_path / "out")
    assert read_config(tmp_path / "out")[1].group_size_k == 4 // groups
    ours = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert_close(ours, logits(reference_model(dense("llama"), ranks)), rtol=0, atol=1e-4)


def test_padding_is_zeros_and_its_bytes_are_told(tmp_path, dense):
    dump = write_dump(dense("llama"), tmp_path / "dump", UNEQUAL)
    report = converted(dump, tmp_path / "out", value_path="factored")
    tensors = load_file(tmp_path / "out" / SINGLE)
    second = tensors["model.layers.0.self_attn.v_down.weight"].view(2, 20, 64)[1]
    assert not second[3:].any() and second[:3].any()
    assert not tensors["model.layers.0.self_attn.v_up"][1, 3:].any()
    numbers = (13 - 8) + (32 - 5) + (20 - 3) + (9 - 7)
    assert report["padding_bytes_per_token"] == 4 * numbers
    assert f"{4 * numbers} of the {report['bytes_per_token']} bytes" in report["note"]
    assert json.loads((tmp_path / "out" / "palu_report.json").read_text()) == report
    equal = converted(write_dump(dense("llama"), tmp_path / "d", EQUAL), tmp_path / "o")
    assert equal["padding_bytes_per_token"] == 0 and "nothing is padded" in equal["note"]


def test_equal_ranks_keep_every_factor_bit_for_bit(tmp_path, dense):
    dump = write_dump(dense("llama"), tmp_path / "dump", EQUAL)
    converted(dump, tmp_path / "out", value_path="factored")
    before, after = load_file(dump / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert torch.equal(after[PREFIX + "k_down.weight"], before[PREFIX + "k_proj.VT.weight"])
    assert torch.equal(after[PREFIX + "v_up"][1], before[PREFIX + "v_proj.U.1.weight"].T)
    others = [name for name in before if "self_attn" not in name]
    assert others and all(torch.equal(after[name], before[name]) for name in others)


def test_dtype_of_the_output(tmp_path):
    dump = write_dump(build_even(tmp_path / "model", dtype="float16"), tmp_path / "dump", EQUAL)
    converted(dump, tmp_path / "kept")
    converted(dump, tmp_path / "wide", dtype="float32")
    for out, dtype in (("kept", torch.float16), ("wide", torch.float32)):
        assert {tensor.dtype for _, tensor in iterate_tensors(tmp_path / out)} == {dtype}
        assert read_config(tmp_path / out)[0]["dtype"] == str(dtype).removeprefix("torch.")


def edit(dump, **changes):
    config = json.loads((dump / "config.json").read_text()) | changes
    (dump / "config.json").write_text(json.dumps(config))


def ranks_with(**changes):
    names = {f"model.layers.{i}.self_attn.{n}": r for n, rs in EQUAL.items() for i, r in enumerate(rs)}
    return names | {f"model.layers.0.self_attn.{name}": ranks for name, ranks in changes.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model type 'llama'; expected a dump of the reference"),
        ({"model_type": "palu_llama"}, "model type 'palu_llama'; expected a dump"),
        ({"sliding_window": 32}, "says palullama but has a sliding window"),
        ({"head_wise_ranks": None}, "has None for model.layers.0.self_attn.k_proj"),
        ({"head_wise_ranks": {}}, "has None for model.layers.0.self_attn.k_proj"),
        ({"head_wise_ranks": ranks_with(k_proj=["8", 8])}, "expected the rank of every group"),
        ({"head_wise_ranks": ranks_with(k_proj=[8, 0])}, "a rank outside 1 to 32"),
        ({"head_wise_ranks": ranks_with(v_proj=[33, 8])}, "a rank outside 1 to 32"),
        ({"head_wise_ranks": ranks_with(v_proj=[16])}, r"v_proj has \[1, 2\] groups in a layer"),
        ({"head_wise_ranks": ranks_with(k_proj=[8, 9])}, r"VT.weight has shape \[16, 64\], expected \[17, 64\]"),
        ({"num_hidden_layers": 3}, "has None for model.layers.2.self_attn.k_proj"),
        ({"num_hidden_layers": 1}, "has tensor model.layers.1.* which no dump has"),
        ({"num_key_value_heads": 2}, "a rank outside|expected"),
        ({"intermediate_size": 100}, "expected .* from config.json"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized weights"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope type 'dynamic'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_a_configuration_that_cannot_be_converted(tmp_path, dense, capsys, changes, words):
    dump = write_dump(dense("llama"), tmp_path / "dump", EQUAL)
    edit(dump, **changes)
    refused(dump, tmp_path, capsys, words)


def refused(dump, tmp_path, capsys, words):
    before = sorted(tmp_path.iterdir())
    assert main([str(dump), str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    sentence = told.err.splitlines()[-1]
    assert sentence.startswith("palu-convert: ")
    assert not told.out
    with pytest.raises(ValueError, match=words):
        convert(ConvertOptions(dump, tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("k_proj.U.1.weight", None, "lacks tensor .*k_proj.U.1.weight"),
        ("k_proj.U.1.weight", torch.zeros(32, 11), r"has shape \[32, 11\], expected \[32, 12\]"),
        ("o_proj.weight", torch.zeros(64, 320), r"o_proj.weight has shape \[64, 320\]"),
        ("k_proj.weight", torch.zeros(64, 64), "has tensor .*k_proj.weight, which no dump has"),
        ("v_proj.U.0.weight", torch.full((32, 20), torch.nan), "not finite"),
    ],
)
def test_tensors_that_are_not_as_promised(tmp_path, dense, capsys, name, tensor, words):
    dump = write_dump(dense("llama"), tmp_path / "dump", EQUAL)
    tensors = load_file(dump / SINGLE) | ({} if tensor is None else {PREFIX + name: tensor})
    if tensor is None:
        del tensors[PREFIX + name]
    save_file(tensors, dump / SINGLE, metadata={"format": "pt"})
    refused(dump, tmp_path, capsys, words)


def test_pickles_are_never_opened(tmp_path, dense, capsys):
    dump = write_dump(dense("llama"), tmp_path / "dump", EQUAL)
    torch.save(load_file(dump / SINGLE), dump / "pytorch_model.bin")
    (dump / SINGLE).unlink()
    refused(dump, tmp_path, capsys, "pickled weights only")


def test_the_command(tmp_path, dense):
    dump = write_dump(dense("llama"), tmp_path / "dump", UNEQUAL)
    argv = (dump, tmp_path / "out", "--value-path", "factored")
    ended = forked.run(main, *argv)
    assert ended.returncode == 0, ended.stderr
    assert "bytes of KV cache per token instead of 1024" in ended.stdout and "padded with zeros" in ended.stdout
    assert read_config(tmp_path / "out")[1].value_path == "factored"
    assert forked.run(main, *argv).returncode == 2
    assert forked.run(main, *argv, "--overwrite").returncode == 0
