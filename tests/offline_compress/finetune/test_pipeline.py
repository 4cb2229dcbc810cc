"""A fine-tuned checkpoint is the same kind of checkpoint with a lower loss; until it is complete the old one stays."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from offline_compress import compress
from offline_compress.commands.finetune import main
from offline_compress.finetune.lora import MODULES
from offline_compress.finetune.pipeline import FinetuneOptions, finetune
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import INDEX, SINGLE, check_shapes, checkpoint_shapes, iterate_tensors
from tests.support.tiny_models import edit_config

QUICK = {"steps": 8, "batch_size": 4, "seqlen": 32, "rank": 4, "learning_rate": 5e-3}
VERSE = "in the beginning was the word, and the word was with the man. "


@pytest.fixture(scope="module")
def verse(tmp_path_factory) -> str:
    """A text that is easily learnt by heart."""
    path = tmp_path_factory.mktemp("verse") / "verse.txt"
    path.write_text(VERSE * 40)
    return str(path)


@pytest.fixture(scope="module")
def compressed(dense, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "out"
    compress(dense("llama"), out, objective="svd", search="uniform", dtype="float16")
    return out


@pytest.fixture
def checkpoint(compressed, tmp_path) -> Path:
    return Path(shutil.copytree(compressed, tmp_path / "out"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@torch.no_grad()
def loss(directory: Path) -> float:
    """Of the verse, in nats per token."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(directory)(VERSE, return_tensors="pt").input_ids
    return model(tokens, labels=tokens).loss.item()


def test_the_loss_falls_in_place(checkpoint, compressed, verse):
    record = finetune(FinetuneOptions(checkpoint, verse, **QUICK | {"steps": 25}))
    assert record["last_loss"] < record["first_loss"]
    assert loss(checkpoint) < 0.8 * loss(compressed)
    check_shapes(checkpoint)
    before, after = contents(compressed), contents(checkpoint)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {SINGLE, "palu_report.json", "README.md"}
    one, other = load_file(compressed / SINGLE), load_file(checkpoint / SINGLE)
    assert {tensor.dtype for tensor in other.values()} == {torch.float16}
    trained = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name.split(".")[-2] for name in trained} == set(MODULES)


def test_the_record_says_what_was_done(checkpoint, verse):
    records = [finetune(FinetuneOptions(checkpoint, verse, **QUICK)) for _ in range(2)]
    report = json.loads((checkpoint / "palu_report.json").read_text())
    assert report["finetuned"] == records
    assert report["rank_k"]  # the compression's own report is still there
    assert records[0]["steps"] == 8 and records[0]["data"].startswith("verse.txt, ")
    assert (checkpoint / "README.md").read_text().count("Fine-tuned by palu-finetune: LoRA, 8 steps on verse.txt") == 2


def test_no_step_changes_no_weight(checkpoint, compressed, verse):
    finetune(FinetuneOptions(checkpoint, verse, **QUICK | {"steps": 0}))
    assert (checkpoint / SINGLE).read_bytes() == (compressed / SINGLE).read_bytes()


def test_one_pass_is_the_default(checkpoint, verse):
    record = finetune(FinetuneOptions(checkpoint, verse, samples=9, **QUICK | {"steps": None}))
    assert record["steps"] == 3
    assert "9 samples of 32 tokens" in record["data"]


def test_another_directory_leaves_the_first_alone(checkpoint, compressed, verse, tmp_path):
    finetune(FinetuneOptions(checkpoint, verse, tmp_path / "new", **QUICK))
    assert contents(checkpoint) == contents(compressed)
    check_shapes(tmp_path / "new")


def test_the_seed_decides_every_byte(compressed, verse, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name))
        finetune(FinetuneOptions(compressed, verse, tmp_path / name, seed=seed, **QUICK))
    one, same, other = ((tmp_path / name / SINGLE).read_bytes() for name in "abc")
    assert one == same != other


def test_shards_stay_the_same_files(dense, verse, tmp_path, monkeypatch):
    monkeypatch.setattr("offline_compress.pipeline.MAX_SHARD_BYTES", 80_000)
    compress(dense("qwen2"), tmp_path / "out", objective="svd", search="uniform")
    before, names = checkpoint_shapes(tmp_path / "out"), set(contents(tmp_path / "out"))
    assert INDEX in names
    finetune(FinetuneOptions(tmp_path / "out", verse, **QUICK))
    check_shapes(tmp_path / "out")
    assert checkpoint_shapes(tmp_path / "out") == before
    assert set(contents(tmp_path / "out")) == names


def test_packed_latents_are_trained_as_they_are_cached(dense, verse, tmp_path):
    compress(dense("llama"), tmp_path / "out", objective="svd", search="uniform", latent_bits=4)
    before = loss(tmp_path / "out")
    finetune(FinetuneOptions(tmp_path / "out", verse, **QUICK | {"steps": 25}))
    assert loss(tmp_path / "out") < 0.8 * before


class StopError(Exception):
    pass


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(checkpoint, compressed, verse, tmp_path, error):
    def stop(event):
        if event["event"] == "step" and event["number"] == 3:
            raise error

    with pytest.raises(error):
        finetune(FinetuneOptions(checkpoint, verse, **QUICK), stop)
    assert contents(checkpoint) == contents(compressed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_while_writing_leaves_everything_as_it_was(checkpoint, compressed, verse, tmp_path):
    (checkpoint / "palu_report.json").write_text("[]")  # read when the weights are written already
    before = contents(checkpoint)
    with pytest.raises(ValueError, match="palu_report.json"):
        finetune(FinetuneOptions(checkpoint, verse, **QUICK))
    assert contents(checkpoint) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_quantized_weights_are_refused(checkpoint, verse):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CompressionError, match="has quantized weights, which cannot be trained"):
        finetune(FinetuneOptions(checkpoint, verse, **QUICK))


@pytest.mark.slow
def test_a_kill_leaves_everything_as_it_was(checkpoint, compressed, verse, tmp_path):
    command = [
        sys.executable,
        "-m",
        "offline_compress.commands.finetune",
        checkpoint,
        "--data",
        verse,
        "--steps",
        "100000",
    ]
    process = subprocess.Popen([*command, "--seqlen", "32"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if '"number": 2' in line:
            break
    process.kill()
    process.communicate()
    assert contents(checkpoint) == contents(compressed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--steps -1", "steps is -1; expected at least 0."),
        ("--seed -1", "seed is -1; expected at least 0."),
        ("--rank 0", "rank is 0; expected at least 1"),
        ("--batch-size 0", "batch size is 0"),
        ("--samples 0", "samples is 0"),
        ("--alpha -1", "alpha is -1.0; expected a number above 0"),
        ("--lr inf", "learning rate is inf"),
        ("--lr nan", "learning rate is nan"),
        ("--seqlen 1", "seqlen is 1; expected at least 2."),
        ("--seqlen 129", "exceed the model's context of 128"),
        ("--device tpu", "device 'tpu' is not supported"),
        ("--data /", "is a directory"),
        ("--data SHORT", "less than one sample of 32 tokens; give more text or shorter samples"),
        ("--out IN", "holds the input"),
        ("--out SHORT", "exists and is not a directory"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(checkpoint, compressed, verse, tmp_path, capsys, argv, words):
    (tmp_path / "short.txt").write_text("word")
    places = {"SHORT": str(tmp_path / "short.txt"), "IN": str(checkpoint)}
    chosen = [places.get(word, word) for word in argv.split()]
    assert main([str(checkpoint), "--data", verse, "--seqlen", "32", *chosen]) == 2
    told = capsys.readouterr()
    assert words in told.err and told.err.splitlines()[-1].startswith("palu-finetune: ") and not told.out
    assert contents(checkpoint) == contents(compressed)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "short.txt"}


def test_what_is_no_checkpoint(dense, checkpoint, verse, tmp_path, capsys):
    for directory, words in ((tmp_path, "config.json"), (dense("llama"), "no palu_config section")):
        assert main([str(directory), "--data", verse]) == 2
        assert words in capsys.readouterr().err
    edit_config(checkpoint, intermediate_size=100)
    assert main([str(checkpoint), "--data", verse]) == 2
    assert "compress the model again" in capsys.readouterr().err


def test_the_command(checkpoint, verse, capsys):
    assert main([str(checkpoint), "--data", verse, "--steps", "2", "--seqlen", "32", "--batch-size", "2"]) == 0
    told = capsys.readouterr()
    assert f"{checkpoint}: 2 steps, loss " in told.out
    steps = [json.loads(line) for line in told.err.splitlines() if '"step"' in line]
    assert [step["number"] for step in steps] == [0, 1] and all(step["loss"] > 0 for step in steps)
    assert all(torch.isfinite(tensor).all() for _, tensor in iterate_tensors(checkpoint))


def test_layers_that_share_are_trained_too(dense, tmp_path, verse):
    """They have queries and an output projection; latents of few bits are those of the layer that they read."""
    out = tmp_path / "out"
    compress(dense("llama"), out, objective="svd", search="uniform", latent_bits=8, share_map=((1, 0),))
    before, untrained = dict(iterate_tensors(out)), loss(out)
    finetune(FinetuneOptions(out, verse, **QUICK))
    check_shapes(out)
    assert loss(out) < untrained
    changed = {name for name, tensor in iterate_tensors(out) if not torch.equal(tensor, before[name])}
    shared = {f"model.layers.1.self_attn.{name}.weight" for name in ("q_proj", "o_proj")}
    assert {name for name in changed if ".layers.1.self_attn." in name} == shared
