"""Seconds of parts: each counted once, for the innermost, and never more than all."""

import time

import pytest

from offline_compress import compress
from offline_compress.run.stopwatch import PARTS, lap, measured, part

STEP = 0.02


def test_time_counts_for_the_innermost_part():
    with measured():
        with part("run"):
            time.sleep(STEP)
            with part("load"):
                time.sleep(2 * STEP)
            time.sleep(STEP)
        time.sleep(STEP)
        spent = lap()
    assert spent["run"] >= 2 * STEP and spent["load"] >= 2 * STEP
    assert spent["run"] + spent["load"] + STEP <= spent["total"] + 2e-3
    assert set(spent) == {"total", *PARTS} and spent["svd"] == 0


def test_a_lap_begins_where_the_last_one_ended_also_within_a_part():
    with measured():
        with part("svd"):
            time.sleep(STEP)
            first = lap()
            time.sleep(STEP)
        second = lap()
    assert first["svd"] >= STEP <= second["svd"]
    assert second["total"] < first["total"] + second["total"] and lap() == {}


def test_an_error_ends_its_part():
    with measured():
        with pytest.raises(RuntimeError), part("svd"):
            raise RuntimeError
        time.sleep(STEP)
        assert lap()["svd"] < STEP


def test_the_report_has_the_seconds_of_every_layer_and_its_parts(tmp_path, text, dense):
    events: list[dict] = []
    options = {"objective": "weighted", "calib_data": text, "calib_samples": 3, "calib_seqlen": 40}
    report = compress(dense("llama"), tmp_path / "out", on_event=events.append, **options)
    for name in ("layer_seconds", "search_layer_seconds"):
        assert len(report[name]) == 2
        for layer in report[name]:
            parts = sum(layer[part] for part in PARTS)
            assert 0.5 * layer["total"] < parts <= layer["total"] + 0.01
    written = report["layer_seconds"][0]
    assert all(written[part] > 0 for part in ("load", "run", "moment", "attention", "svd", "refit", "write"))
    assert [event["seconds"] for event in events if event["event"] == "layer"] == [
        layer["total"] for layer in report["layer_seconds"]
    ]
    assert report["resumed_behind_layers"] is None
