import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from offline_compress.calibration.samples import cut_samples, load_samples, load_tokenizer, pack
from offline_compress.calibration.text import read_documents
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import CheckpointError
from tests.support.tiny_models import byte_tokenizer, write_text

BOS, EOS, VOCABULARY = 256, 257, 300


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(directory)
    return directory


def test_short_texts_are_packed_with_a_separator():
    assert pack([[1, 2], [], [3], [4, 5, 6], [7]], [0], enough=7) == [1, 2, 0, 3, 0, 4, 5, 6]


def test_windows_do_not_overlap_and_are_never_padded():
    rows = cut_samples(list(range(103)), [], count=50, seqlen=10, seed=3)
    assert rows.shape == (10, 10)
    assert sorted(rows.flatten().tolist()) == list(range(100))


def test_seed_and_count_choose_the_windows():
    stream = list(range(1000))
    first = cut_samples(stream, [], 5, 10, seed=1)
    assert torch.equal(first, cut_samples(stream, [], 5, 10, seed=1))
    assert not torch.equal(first, cut_samples(stream, [], 5, 10, seed=2))
    assert torch.equal(first, cut_samples(stream, [], 9, 10, seed=1)[:5])


def test_every_sample_begins_as_a_served_prompt_does():
    rows = cut_samples(list(range(100)), [BOS], 3, 10, seed=0)
    assert rows.shape == (3, 10)
    assert (rows[:, 0] == BOS).all()


@pytest.mark.parametrize("kind", ["txt", "jsonl", "md"])
def test_text_kinds(tmp_path, tokenizer_directory, kind):
    text = write_text(tmp_path / "source", words=600).read_text()
    path = tmp_path / f"data.{kind}"
    lines = [json.dumps({"text": line, "id": 1}) for line in text.splitlines()]
    path.write_text("\n\n".join(lines) if kind == "jsonl" else text)
    samples = load_samples(str(path), tokenizer_directory, VOCABULARY, 4, 64, seed=0)
    assert samples.tokens.shape == (4, 64)
    assert samples.name == path.name
    assert samples.label == f"{path.name}, 4 samples of 64 tokens, sha256 {samples.digest[:16]}"
    assert (samples.tokens == EOS).any() == (kind == "jsonl")


def test_fewer_whole_samples_than_asked_for(tmp_path, tokenizer_directory):
    path = tmp_path / "data.txt"
    path.write_text("x" * 250)
    assert load_samples(str(path), tokenizer_directory, VOCABULARY, 99, 100, 0).tokens.shape == (2, 100)


def fail(data, directory, vocabulary=VOCABULARY) -> str:
    with pytest.raises(CompressionError) as caught:
        load_samples(str(data), directory, vocabulary, 4, 64, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_data_that_cannot_be_used_is_one_sentence(tmp_path, tokenizer_directory):
    short, binary, empty = tmp_path / "short.txt", tmp_path / "binary.txt", tmp_path / "empty.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\x00" * 100)
    empty.write_text("")
    assert "has 9 tokens, less than one sample of 64 tokens" in fail(short, tokenizer_directory)
    assert "has 0 tokens" in fail(empty, tokenizer_directory)
    assert "cannot be read" in fail(binary, tokenizer_directory)
    assert "is a directory" in fail(tmp_path, tokenizer_directory)
    long = write_text(tmp_path / "long.txt")
    assert "gives token" in fail(long, tokenizer_directory, vocabulary=20)
    assert "has no tokenizer that can be loaded" in fail(long, tmp_path)


def test_a_damaged_tokenizer_is_one_sentence(tmp_path, tokenizer_directory):
    broken = Path(shutil.copytree(tokenizer_directory, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text((broken / "tokenizer.json").read_text()[:500])
    with pytest.raises(CheckpointError, match="tokenizer.json cannot be read as JSON"):
        load_tokenizer(broken)


@pytest.mark.parametrize("line", ["{", '{"other": "a"}', '{"text": 3}', "[]", '"text"'])
def test_jsonl_lines_that_are_wrong(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(CompressionError, match="line 2 of"):
        list(read_documents(str(path)))


@pytest.mark.parametrize(("module", "data"), [("pyarrow", "data.parquet"), ("datasets", "org/dataset")])
def test_missing_libraries_are_named(tmp_path, monkeypatch, module, data):
    (tmp_path / "data.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CompressionError, match=f"pip install {module}"):
        list(read_documents(data))


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ("org/dataset", ("org/dataset", None, "train")),
        ("org/dataset:part:test", ("org/dataset", "part", "test")),
        ("wikitext2", ("Salesforce/wikitext", "wikitext-2-raw-v1", "train")),
    ],
)
def test_hub_datasets_are_asked_for_by_id(monkeypatch, data, asked):
    calls = []

    def load_dataset(name, configuration, split, streaming):
        calls.append((name, configuration, split))
        return iter([{"text": "one"}, {"text": ""}, {"text": "two"}])

    stub = ModuleType("datasets")
    stub.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert list(read_documents(data)) == ["one", "two"]
    assert calls == [asked]
