"""Notes of what is finished: exact, complete or absent, of one run only."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline_compress.calibration.activations import LayerInputs
from offline_compress.run.errors import CompressionError
from offline_compress.run.journal import Journal, open_journal, write_at_once

RUN = {"seed": 1, "model": {"config.json": "a"}}


@given(st.lists(st.floats(allow_nan=False)))
def test_numbers_come_back_exactly(values):
    assert json.loads(json.dumps(values)) == values


def test_layers_count_up_to_the_first_that_is_missing(tmp_path):
    journal = open_journal(tmp_path / "state", RUN).section("pass")
    for layer in (0, 1, 3):
        journal.add_layer(layer, {"layer": layer})
    assert [entry["layer"] for entry in journal.layers()] == [0, 1]
    assert Journal(tmp_path / "state").section("other").layers() == []


def test_what_is_remembered_is_computed_once(tmp_path):
    journal, calls = open_journal(tmp_path / "state", RUN), []
    for _ in range(2):
        assert journal.remembered("value", lambda: calls.append(1) or [0.1, 2]) == [0.1, 2]
    assert len(calls) == 1
    assert open_journal(tmp_path / "state", RUN).remembered("value", lambda: 1 / 0) == [0.1, 2]


def test_layers_that_are_missing_are_computed_and_timed(tmp_path):
    journal, told = open_journal(tmp_path / "state", RUN), []
    journal.add_layer(0, {"twice": 0, "seconds": 0.5})
    entries = journal.over_layers(
        3, lambda layer: {"twice": 2 * layer}, lambda layer, entry: told.append((layer, entry))
    )
    assert [entry["twice"] for entry in entries] == [0, 2, 4]
    assert entries[0]["seconds"] == 0.5 and all(entry["seconds"] >= 0 for entry in entries[1:])
    assert told == [(1, entries[1]), (2, entries[2])]


def test_a_file_that_was_not_finished_does_not_count(tmp_path):
    journal = open_journal(tmp_path / "state", RUN)
    with pytest.raises(TypeError):
        write_at_once(journal.directory / "layer-00000.json", [1, object()])
    assert journal.layers() == []


def test_without_its_beginning_a_journal_is_empty(tmp_path):
    open_journal(tmp_path / "state", RUN).add_layer(0, 1)
    (tmp_path / "state" / "made_from.json").unlink()
    assert open_journal(tmp_path / "state", RUN).layers() == []


@pytest.mark.parametrize(("other", "words"), [
    ({"seed": 2}, "seed 1, now 2"),
    ({"model": {"config.json": "b"}}, "config.json a, now b"),
    ({"model": {}}, "config.json a, now None"),
])  # fmt: skip
def test_another_run_is_refused_by_its_first_difference(tmp_path, other, words):
    open_journal(tmp_path / "state", RUN)
    with pytest.raises(CompressionError, match=words):
        open_journal(tmp_path / "state", RUN | other)


def test_inputs_of_a_layer_stay_until_those_of_the_next_are_kept(tmp_path):
    inputs, samples = LayerInputs(tmp_path, (5, 4)), torch.randn(2, 5, 4)
    for layer, sample in enumerate(samples):
        with inputs.writing(layer) as file:
            file.write(0, sample)
    with inputs.reading(0) as file:
        assert torch.equal(file.read(0), samples[0])
    inputs.keep_only(1)
    with pytest.raises(OSError), inputs.reading(0):
        pass
    with inputs.reading(1) as file:
        assert torch.equal(file.read(0), samples[1])
