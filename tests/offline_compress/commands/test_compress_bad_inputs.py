"""The command on inputs and machines that are not as they should be: one sentence, exit code 2, nothing left behind."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from offline_compress import compress
from offline_compress.commands.compress import main
from offline_compress.run.staging import STATE, work_directory
from palu_vllm.format.checkpoint import INDEX, SINGLE, check_finite
from tests.support.tiny_models import build_even

QUICK = ["--calib-samples", "3", "--calib-seqlen", "40", "--search", "uniform"]


def refused(capsys, model: Path, *flags: str) -> str:
    """The sentence that the command ends with; nothing may have come up beside the model."""
    before = sorted(model.parent.rglob("*"))
    assert main([str(model), str(model.parent / "out"), *flags]) == 2
    assert sorted(model.parent.rglob("*")) == before
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if not line.startswith("{")]
    assert len(said) == 1 and said[0].startswith("palu-compress: ") and captured.out == ""
    return said[0]


@pytest.fixture
def sharded(tmp_path) -> Path:
    return build_even(tmp_path / "model", max_shard_size="60KB")


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("model-*.safetensors"))


def test_a_missing_shard(sharded, capsys):
    shards(sharded)[1].unlink()
    assert "is missing; fetch the checkpoint again" in refused(capsys, sharded, "--objective", "svd")


def test_a_truncated_shard(sharded, capsys):
    path = shards(sharded)[1]
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a readable safetensors file" in refused(capsys, sharded, "--objective", "svd")


def test_a_shard_that_holds_other_tensors_than_the_index_says(sharded, capsys):
    one, other = shards(sharded)[:2]
    shutil.copy(other, one)
    assert "which the index says it holds" in refused(capsys, sharded, "--objective", "svd")


def test_a_shard_that_cannot_be_read(sharded, capsys):
    path = shards(sharded)[1]
    path.unlink()
    path.mkdir()
    assert "palu-compress: " in refused(capsys, sharded, "--objective", "svd")


@pytest.mark.parametrize("name", ["shard", "tokenizer.json", "LICENSE"])
def test_links_that_leave_the_directory(sharded, tmp_path, capsys, name):
    """A link of an archive could lead to any file of the reader's; companions would be published with the output."""
    path = shards(sharded)[0] if name == "shard" else sharded / name
    secret = tmp_path / "secret"
    shutil.copy(path, secret) if path.exists() else secret.write_text("secret")
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    assert "is a link that leaves the model directory" in refused(capsys, sharded, "--objective", "svd")


def test_links_of_the_hub_are_followed(dense, tmp_path):
    home = tmp_path / "models--org--name"
    blobs, snapshot = home / "blobs", home / "snapshots" / "abc"
    shutil.copytree(dense("llama"), blobs)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    compress(snapshot, tmp_path / "out", objective="svd", search="uniform")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("weight_map", [None, [], {"lm_head.weight": 3}, {"lm_head.weight": "../model/x.safetensors"}])
def test_an_index_that_is_wrong(sharded, capsys, weight_map):
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(capsys, sharded, "--objective", "svd")


@pytest.mark.parametrize(("content", "name", "words"), [
    (b"\xff\xfe\x00\x81", "data.txt", "cannot be read"),
    (b"caf\xe9 " * 500, "data.jsonl", "cannot be read"),
    (b'{"text": "a"}\n{"text": ', "data.jsonl", "line 2 of"),
    (b'{"other": "a"}\n', "data.jsonl", "line 1 of"),
    (b"not parquet", "data.parquet", "is not a readable parquet file|needs pyarrow"),
    (b"short", "data.txt", "has 5 tokens, less than one sample of 40 tokens"),
    (b"", "data.txt", "has 0 tokens"),
    (b'{"text": "short"}', "data.jsonl", "less than one sample of 40 tokens"),
])  # fmt: skip
def test_calibration_data_that_cannot_be_used(own_dense, tmp_path, capsys, content, name, words):
    (tmp_path / name).write_bytes(content)
    sentence = refused(capsys, own_dense, "--calib-data", str(tmp_path / name), *QUICK)
    assert any(option in sentence for option in words.split("|"))


def test_calibration_data_that_may_not_be_read(own_dense, tmp_path, capsys, monkeypatch):
    """Root may read everything: the system's refusal is put in its place there."""
    path = tmp_path / "data.txt"
    path.write_text("some words " * 300)
    path.chmod(0)
    if os.access(path, os.R_OK):
        original = Path.open

        def denied(self: Path, *args, **kwargs):
            if self == path:
                raise PermissionError(13, "Permission denied", str(path))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", denied)
    sentence = refused(capsys, own_dense, "--calib-data", str(path), *QUICK)
    assert "cannot be read" in sentence and "Permission denied" in sentence


@pytest.mark.parametrize("data", ["/no/such/file.txt", "./missing.txt", "../missing.jsonl", "a/b/c", ""])
def test_calibration_data_that_is_not_there(own_dense, capsys, data):
    refused(capsys, own_dense, f"--calib-data={data}", *QUICK)


def on_a_full_disk(*argv: str) -> int:
    """The command's exit code where no file may grow beyond 200 KB: a write fails as on a disk that is full."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        os._exit(main(argv))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_full_disk(own_dense, text, capfd):
    assert (own_dense / SINGLE).stat().st_size > 200_000
    argv = [str(own_dense), str(own_dense.parent / "out"), "--calib-data", text, *QUICK]
    assert on_a_full_disk(*argv) == 2
    said = capfd.readouterr()
    assert "File too large" in said.err.splitlines()[-1] and "Traceback" not in said.err and not said.out
    assert [path.name for path in own_dense.parent.iterdir()] == ["model"]


def test_a_disk_that_is_full_for_a_while(own_dense, text):
    argv = [str(own_dense), str(own_dense.parent / "out"), "--calib-data", text, *QUICK, "--resume"]
    assert on_a_full_disk(*argv) == 2
    assert (work_directory(own_dense.parent / "out") / STATE).exists()
    assert main(argv) == 0
    check_finite(own_dense.parent / "out")
    assert sorted(path.name for path in own_dense.parent.iterdir()) == ["model", "out"]
