"""What a session takes along: the commit is found without git, sizes are right, and too much is said."""

import zipfile

import pytest

from benchmarks.common import provenance
from benchmarks.gpu.prepare import MOST, build_wheel, calls, copy_parts, size_of, tree_size, write_commit


@pytest.fixture
def parts(tmp_path):
    for number in range(2):
        folder = tmp_path / "packed" / f"part-{number:02}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / f"piece{number}").write_bytes(bytes(1000))
    return tmp_path / "packed"


def test_the_commit_travels_without_git(tmp_path, monkeypatch):
    write_commit(tmp_path)
    said = provenance.described("--dirty")
    monkeypatch.setattr(provenance, "CARRIED", tmp_path / "commit.json")
    assert provenance.carried_commit() == said
    monkeypatch.setattr(provenance, "described", lambda *_: None)
    assert provenance.provenance()["commit"] == said
    monkeypatch.setattr(provenance, "CARRIED", tmp_path / "none.json")
    assert provenance.provenance()["commit"] == "unknown"


def test_one_call_without_parts_and_one_per_part(parts, tmp_path):
    out = tmp_path / ".gpu"
    write_commit(out / "commit")
    copied = copy_parts(parts, out / "parts")
    assert [path.name for path in copied] == ["part-00", "part-01"] and size_of(*copied) == 2 * 1002
    (out / "models").mkdir()
    (out / "models" / "tokens.json").write_text("{}")
    lines = calls(out, copied, tree=0)
    assert [line.split(";")[0][-1] for line in lines] == ["1", "2", "2"]
    assert "models" not in lines[1] and "models" in lines[2] and "part-01" in lines[2]
    assert not any("TOO MUCH" in line for line in lines)
    assert all("TOO MUCH" in line for line in calls(out, copied, tree=MOST))


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no part-00"):
        copy_parts(tmp_path, tmp_path / "out")


def test_the_tree_leaves_room():
    assert 10 << 20 < tree_size() < 40 << 20


def test_the_wheel_has_the_entry_points_and_leaves_nothing_behind(tmp_path):
    before = set(provenance.ROOT.iterdir())
    build_wheel(tmp_path)
    (wheel,) = tmp_path.glob("palu_vllm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "palu_vllm/plugin.py" in names and any(name.endswith("entry_points.txt") for name in names)
    assert set(provenance.ROOT.iterdir()) == before
