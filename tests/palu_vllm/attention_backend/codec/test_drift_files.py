"""What one process writes of drift another reads, whole or not at all."""

import json
import stat
import tempfile
from types import SimpleNamespace

import pytest

from palu_vllm.attention_backend.codec.drift_files import Drift, DriftFile, DriftFiles, folder, joined


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def config(instance="a1b2c", engine=0, rank=0):
    return SimpleNamespace(instance_id=instance, parallel_config=SimpleNamespace(data_parallel_index=engine, rank=rank))


def test_nothing_is_known_before_something_is_written():
    assert DriftFiles(config(), 0).read() is None


def test_workers_and_groups_of_one_engine_are_read_together():
    """As engines rename their instance where there are several."""
    DriftFile(config("a1b2c_dp1", 1, 0), "layers.0").write({"layers.0": [1.0, 2.0]}, 30)
    DriftFile(config("a1b2c_dp1", 1, 1), "layers.0").write({"layers.0": [3.0, 2.0]}, 32)
    DriftFile(config("a1b2c_dp1", 1, 0), "layers.1").write({"layers.1": [5.0, 0.0]}, 20)
    DriftFile(config("a1b2c_dp0", 0), "layers.0").write({"layers.0": [9.0, 9.0]}, 99)
    DriftFile(config("other", 1), "layers.0").write({"layers.0": [9.0, 9.0]}, 99)
    found = DriftFiles(config(), 1).read()
    assert found == Drift({"layers.0": [2.0, 2.0], "layers.1": [5.0, 0.0]}, 32)
    assert found.mean == pytest.approx(2.25) and found.largest == 5.0


def test_what_is_new_is_read_and_what_is_not_is_the_same_object():
    files, worker = DriftFiles(config(), 0), DriftFile(config(), "layers.0")
    worker.write({"layers.0": [1.0, 1.0]}, 16)
    first = files.read()
    assert files.read() is first
    worker.write({"layers.0": [2.0, 1.0]}, 32)
    assert files.read().largest == 2.0


def test_nan_is_nothing_known():
    nan = float("nan")
    assert joined([{"layers": {"0": [nan, 2.0], "1": [nan, nan]}, "tokens": 4}]) == Drift({"0": [2.0]}, 4)
    assert joined([{"layers": {"1": [nan, nan]}, "tokens": 4}]) is None


def test_a_damaged_file_leaves_what_was_known():
    files, worker = DriftFiles(config(), 0), DriftFile(config(), "layers.0")
    worker.write({"layers.0": [1.0, 1.0]}, 16)
    before = files.read()
    (folder() / "a1b2c-0-0-layers.1.json").write_text("{")
    assert files.read() is before


def test_files_go_with_the_server(temporary):
    DriftFile(config(), "layers.0").write({"layers.0": [1.0, 1.0]}, 16)
    DriftFile(config("other"), "layers.0").write({"layers.0": [1.0, 1.0]}, 16)
    DriftFiles(config(), 0).remove()
    assert [file.name for file in folder().iterdir()] == ["other-0-0-layers.0.json"]
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    assert json.loads((folder() / "other-0-0-layers.0.json").read_text())["tokens"] == 16


def test_without_a_folder_serving_goes_on(temporary, monkeypatch):
    (temporary / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "file"))
    DriftFile(config(), "layers.0").write({"layers.0": [1.0, 1.0]}, 16)
    files = DriftFiles(config(), 0)
    assert files.read() is None
    files.remove()


def test_a_folder_of_somebody_else_is_not_used(temporary):
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    folder().rmdir()
    (temporary / folder_name()).symlink_to(elsewhere)
    with pytest.raises(PermissionError):
        folder()
    DriftFile(config(), "layers.0").write({"layers.0": [1.0, 1.0]}, 16)
    assert not any(elsewhere.iterdir())


def folder_name() -> str:
    import os

    return f"palu-drift-{os.getuid()}"
