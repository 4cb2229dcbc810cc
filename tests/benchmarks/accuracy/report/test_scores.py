"""The results format: what is written is read, and what has been measured is found again."""

import json

import pytest

from benchmarks.accuracy.model_identity import context_of, describe, fingerprint, model_directory
from benchmarks.accuracy.report.scores import (
    Score,
    key_of,
    mean_score,
    perplexity_score,
    read_scores,
    subset_scores,
    write_scores,
)
from benchmarks.accuracy.runner import merged, stored
from benchmarks.accuracy.tasks.local_data import identity, read_rows, read_text

MODEL = {"name": "model", "fingerprint": "0" * 16, "dtype": "float32", "kv_cache_dtype": "auto"}


def scores() -> list[Score]:
    cells = [{"length": 512, "depth": 0}, {"length": 512, "depth": 50}] * 3
    return [
        perplexity_score("a", 1024, [30.0, 31.5, 29.0], [10, 10, 9]),
        *subset_scores("b", "needle", "found", [1, 0, 1, 1, 1, 0], cells),
    ]


def test_what_is_written_is_read(tmp_path):
    write_scores(tmp_path / "folder" / "out.json", MODEL, scores(), {"provenance": {"commit": "x"}})
    assert read_scores(tmp_path / "folder" / "out.json") == (MODEL, scores())
    content = json.loads((tmp_path / "folder" / "out.json").read_text())
    assert content["provenance"] == {"commit": "x"} and content["format"] == 1


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 0}', '{"format": 1, "model": {}, "scores": [{"a": 1}]}'])
def test_other_files_are_refused_in_one_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / "out.json").write_text(text)
    with pytest.raises(ValueError, match="is not a result file") as caught:
        read_scores(tmp_path / "out.json")
    assert "\n" not in str(caught.value)


def test_subsets_share_out_the_rows():
    whole, *parts = subset_scores("b", "needle", "found", [1, 0, 1, 1], [{"depth": d} for d in (0, 50, 0, 50)])
    assert whole.value == 0.75 and whole.is_headline
    assert [(part.subset["depth"], part.value, part.count) for part in parts] == [(0, 1.0, 2), (50, 0.5, 2)]
    assert not any(part.is_headline for part in parts)


def test_keys_are_of_settings_and_not_of_their_order():
    assert key_of({"a": 1, "b": (2,)}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": (3,)})


def test_a_new_measurement_replaces_all_of_the_old_one():
    old = scores()
    new = subset_scores("c", "needle", "found", [1, 1], [{"length": 512, "depth": 0}] * 2)
    assert merged(old, new) == [old[0], *new]
    assert merged(old, [mean_score("d", "longbench/trec", "classification", [1.0])])[:-1] == old


def test_results_of_another_model_are_not_overwritten(tmp_path):
    out = tmp_path / "out.json"
    assert stored(out, MODEL) == []
    write_scores(out, MODEL, scores(), {})
    assert stored(out, MODEL) == scores()
    for entry in ("fingerprint", "dtype", "kv_cache_dtype"):
        with pytest.raises(ValueError, match="another model"):
            stored(out, MODEL | {entry: "other"})


def test_fingerprints_tell_models_apart(tmp_path, dense):
    model = dense()
    assert fingerprint(model) == fingerprint(model) != fingerprint(dense(vocab_size=520))
    assert describe(str(model), model, "auto", "auto")["name"] == model.name
    assert context_of(model) == 1024


def test_models_that_are_none_are_said(tmp_path):
    with pytest.raises(ValueError, match="is not a model"):
        model_directory(str(tmp_path))
    with pytest.raises(ValueError, match="is not a model"):
        model_directory("missing")


def test_texts_are_read_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_text(str(tmp_path / "a.txt")) == "one\ntwo\n"
    assert read_text(str(tmp_path / "a.jsonl")) == "one\n\ntwo"
    assert read_text(str(tmp_path / "a.jsonl"), 2) == "one"
    with pytest.raises(ValueError, match="does not exist"):
        read_text(str(tmp_path / "missing.txt"))
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    with pytest.raises(ValueError, match="has chats"):
        read_text(str(chats))


def test_rows_need_their_fields(tmp_path):
    file = tmp_path / "rows.jsonl"
    for text, message in [
        ('{"a": 1}\n', "line 1 of .* lacks b"),
        ("{\n", "line 1 of .* is not JSON"),
        ("", "has no rows"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_rows(file, ("a", "b"))
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl", ("a",))


def test_a_file_is_known_by_its_content(tmp_path):
    (tmp_path / "x.txt").write_text("one")
    first = identity(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_text("two")
    assert identity(str(tmp_path / "x.txt")) != first
    assert first["data"] == "x.txt" and identity("some/dataset") == {"data": "some/dataset"}
