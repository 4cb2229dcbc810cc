from pathlib import Path

import pytest

from offline_compress.run.errors import CompressionError
from offline_compress.run.staging import check_target, staged_directory


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_appears_complete(tmp_path):
    with staged_directory(tmp_path / "deep" / "out") as staging:
        (staging / "file").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "new"
    assert entries(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_error(tmp_path, error):
    with pytest.raises(error), staged_directory(tmp_path / "deep" / "er" / "out") as staging:
        (staging / "file").write_text("half")
        raise error
    assert entries(tmp_path) == []


def test_the_old_one_stays_until_the_new_one_is_complete(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError), staged_directory(out) as staging:
        (staging / "new").write_text("half")
        raise ValueError
    assert entries(tmp_path) == ["out"]
    assert entries(out) == ["old"]
    with staged_directory(out) as staging:
        (staging / "new").write_text("new")
        assert entries(out) == ["old"]
    assert entries(tmp_path) == ["out"]
    assert entries(out) == ["new"]


def test_the_old_one_comes_back_if_the_exchange_fails(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = Path.rename

    def fails_for_the_new_one(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError("disk says no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises(OSError, match="disk says no"), staged_directory(out) as staging:
        (staging / "new").write_text("new")
    assert entries(tmp_path) == ["out"]
    assert entries(out) == ["old"]


def test_a_place_that_cannot_be_written_is_one_sentence():
    with pytest.raises(CompressionError, match="/proc/out cannot be written"), staged_directory(Path("/proc/out")):
        pass


def test_permissions_are_those_of_a_new_directory(tmp_path):
    with staged_directory(tmp_path / "out"):
        pass
    (tmp_path / "other").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_targets_that_are_refused(tmp_path):
    model, file, full = tmp_path / "model", tmp_path / "file", tmp_path / "full"
    model.mkdir()
    file.write_text("")
    full.mkdir()
    (full / "x").write_text("")
    (tmp_path / "link").symlink_to(full)
    for out, overwrite, words in [
        (model, True, "holds the input"),
        (tmp_path, True, "holds the input"),
        (file, True, "is not a directory"),
        (tmp_path / "link", True, "is not a directory"),
        (file / "out", False, "cannot be written to"),
        (full, False, "add --overwrite"),
    ]:
        with pytest.raises(CompressionError, match=words):
            check_target(out, [model], overwrite)
    check_target(full, [model], overwrite=True)
    check_target(tmp_path / "new", [model], overwrite=False)
