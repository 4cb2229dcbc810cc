"""Which files of a model go along."""

import pickle
from pathlib import Path

import pytest

from offline_compress import compress
from offline_compress.checkpoint.companions import companions, copy_companions

ALONG = (
    "tokenizer.model", "tokenizer.model.v3", "tekken.json", "merges.txt", "spiece.model", "vocab.json", "LICENSE",
    "additional_chat_templates/tool_use.jinja", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", "generation_config.json", "special_tokens_map.json", "docs/usage/NOTICE.md",
    "README_de.md", "Model.TXT", "no_suffix", "original/tokenizer.model", "docs/readme.md",
)  # fmt: skip
BEHIND = (
    "config.json", "params.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md",
    "pytorch_model.bin.index.json", "consolidated.00.pth", "modeling_llama.py", "tokenizer.PY", "weights.gguf", "a.pkl",
    "sub/config.json", "sub/model.safetensors", "original/params.json", "run.sh", "x.onnx", "lib.so",
    "palu_report.json", ".gitattributes", ".cache/huggingface/download/x.json", "__pycache__/a.txt",
    "training_args.bin", "note.ipynb",
)  # fmt: skip


def filled(directory: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return directory


@pytest.fixture
def model(tmp_path) -> Path:
    return filled(tmp_path / "model", ALONG + BEHIND)


def test_both_kinds_are_listed(model):
    found = companions(model)
    assert sorted(found.copied) == sorted(ALONG)
    assert sorted(found.left_behind) == sorted(BEHIND)


def test_copies_are_in_their_places(model, tmp_path):
    copy_companions(model, tmp_path / "out")
    copied = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert copied == set(ALONG)
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").read_text() == ALONG[7]


@pytest.mark.parametrize(
    "content", [pickle.dumps([1]), b"#!/bin/sh\n", b"\x7fELF\x02", b"PK\x03\x04zip", b"MZ\x90", pickle.dumps([1], 2)]
)
def test_pickles_and_programs_are_known_by_how_they_begin(tmp_path, content):
    (tmp_path / "vocab.dat").write_bytes(content)
    assert companions(tmp_path) == ([], ["vocab.dat"])


def test_links_become_files(tmp_path):
    """A hub's snapshot is links into its blobs; a link to a folder that it lies in leads nowhere new."""
    home = filled(tmp_path / "models--a--b", ("blobs/1", "snapshots/x/templates/a.jinja"))
    snapshot = home / "snapshots" / "x"
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    (snapshot / "additional_chat_templates").symlink_to("templates")
    (snapshot / "again").symlink_to(".")
    (snapshot / "broken.json").symlink_to("nowhere")
    copy_companions(snapshot, tmp_path / "out")
    copied = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert copied == {"tokenizer.json", "templates/a.jinja", "additional_chat_templates/a.jinja"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_the_report_lists_both_and_the_tokenizer(own_dense, tmp_path):
    filled(own_dense, ("additional_chat_templates/tool_use.jinja", "modeling_x.py"))
    report = compress(own_dense, tmp_path / "out", objective="svd", search="uniform")
    assert "additional_chat_templates/tool_use.jinja" in report["files_copied"]
    assert {"modeling_x.py", "config.json", "model.safetensors"} <= set(report["files_left_behind"])
    assert report["tokenizer"] == "12 texts and 12 renderings of 2 chat templates alike"
    assert not (tmp_path / "out" / "modeling_x.py").exists()
