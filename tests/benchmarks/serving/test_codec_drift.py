"""The benchmark of drift, whole, on a tiny model with its own words."""

import json
import sys

import pytest

from benchmarks.serving.codec_drift import KINDS, main
from tests.support.codecs.models import write_codec
from tests.support.tiny_models import build_dense, write_text

pytestmark = [pytest.mark.serving, pytest.mark.slow]


def test_a_row_per_kind_and_what_watching_costs(tmp_path, monkeypatch):
    model = build_dense(tmp_path / "tiny", "llama")
    codec = write_codec(tmp_path / "codec", model, ((64, 3),), ((64, 3),))
    for number, kind in enumerate((*KINDS, "wiki")):
        name = "calibration" if number == len(KINDS) else "evaluation"
        write_text(tmp_path / f"{kind}_{name}.txt", words=60 * (number + 1), seed=number % len(KINDS))
    places = ["--folder", tmp_path, "--model", "tiny", "--codec", codec, "--out", tmp_path / "out.json"]
    sizes = ["--rows", "2", "--context", "64", "--steps"]
    monkeypatch.setattr(sys, "argv", ["codec_drift", *map(str, places), *sizes])
    main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert [row["kind"] for row in result["rows"]] == list(KINDS)
    assert all(row["kl"] > 0 and 0 < row["drift_mean"] <= row["drift_max"] for row in result["rows"])
    assert {"sample_cpu_ms", "share_of_time", "plain_step_ms", "watched_step_ms"} <= result["cost"].keys()
    assert not result["facts"]["usual_from_file"]
