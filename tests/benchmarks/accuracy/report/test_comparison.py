"""Differences and recovery, and a report that says every number of its JSON."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.report.comparison import entry, lines
from benchmarks.accuracy.report.page import number
from benchmarks.accuracy.report.scores import LM_EVAL, Score, mean_score, perplexity_score, subset_scores, write_scores

CELLS = [{"length": length, "depth": depth} for length in (512, 1024) for depth in (0, 50) for _ in range(2)]
ROWS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=20)


def model(name: str) -> dict:
    return {"name": name, "fingerprint": name, "dtype": "float32", "kv_cache_dtype": "auto", "bytes_per_token": 64}


def scores(loss: float, hits: list[int]) -> list[Score]:
    """Of a model that loses ``loss`` nats per token, and as many rows as ``hits`` has ones."""
    return [
        perplexity_score("p", 512, [100 * loss, 101 * loss, 98 * loss + 2], [100, 100, 99]),
        *subset_scores("n", "needle", "found", hits, CELLS),
        mean_score("l1", "longbench/hotpotqa", "f1", [0.25, 0.5 * loss / 3, 0.75]),
        mean_score("l2", "longbench/trec", "classification", hits[:4]),
        Score("w", "lm-eval/wikitext", "word_perplexity", {}, 10.3 * loss, 0.21 * loss, LM_EVAL, 62, False),
    ]


DENSE, WORSE = scores(3.0, [1, 1, 1, 1, 1, 0, 1, 1]), scores(3.1, [1, 0, 1, 1, 1, 0, 0, 1])


@given(ROWS)
def test_a_model_recovers_itself(rows):
    own = mean_score("k", "t", "m", rows)
    beside = entry(own, own)
    assert beside.difference.value == 0 and beside.difference.stderr == 0
    assert beside.recovery.value is None if own.value == 0 else beside.recovery.value == 1


@given(ROWS, st.data())
def test_recovery_is_the_share_of_the_dense_score(rows, data):
    other = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(rows), max_size=len(rows)))
    dense, compressed = mean_score("k", "t", "m", rows), mean_score("k", "t", "m", other)
    beside = entry(dense, compressed)
    assert beside.difference.value == pytest.approx(compressed.value - dense.value)
    if dense.value:
        assert beside.recovery.value * dense.value == pytest.approx(compressed.value)


def test_recovery_of_perplexity_is_the_inverse():
    beside = entry(DENSE[0], WORSE[0])
    assert beside.recovery.value == pytest.approx(DENSE[0].value / WORSE[0].value)
    assert beside.recovery.value < 1 and beside.paired


def test_without_rows_errors_are_those_of_independent_samples():
    beside = entry(DENSE[-1], WORSE[-1])
    assert not beside.paired
    assert beside.difference.stderr == pytest.approx(math.hypot(DENSE[-1].stderr, WORSE[-1].stderr))
    assert beside.recovery.value == pytest.approx(3.0 / 3.1)


def test_averages_weigh_tasks_alike():
    average = lines(DENSE, [("worse", WORSE)])[-1]
    tasks = [score for score in DENSE if score.task.startswith("longbench/")]
    assert average.title == "longbench, average of 2 tasks"
    assert average.dense.value == pytest.approx(sum(task.value for task in tasks) / 2)
    assert average.others[0].recovery.value * average.dense.value == pytest.approx(average.others[0].score.value)


def test_a_model_that_was_not_measured_is_a_gap():
    rows = lines(DENSE, [("part", WORSE[:1])])
    assert rows[0].others[0] is not None and rows[1].others == (None,)


def test_other_settings_are_refused():
    other = [perplexity_score("q", 512, [300.0, 300.0], [100, 100])]
    with pytest.raises(ValueError, match="perplexity, context 512 of odd was measured with other settings"):
        lines(DENSE, [("odd", other)])


def numbers_of(content) -> list[float]:
    """Every number of estimates in a report's lines."""
    if isinstance(content, dict):
        return [value for name, part in content.items() if name != "subset" for value in numbers_of(part)]
    if isinstance(content, list):
        return [value for part in content for value in numbers_of(part)]
    return [content] if isinstance(content, float) else []


@pytest.fixture
def report(tmp_path):
    for name, own in (("dense", DENSE), ("worse", WORSE)):
        write_scores(tmp_path / f"{name}.json", model(name), own, {})
    files = [str(tmp_path / f"{name}.json") for name in ("dense", "worse", "worse")]
    main(["compare", *files, "--report", str(tmp_path / "report.html"), "--images", str(tmp_path / "images")])
    return tmp_path


def test_the_report_has_every_number_of_its_json(report):
    page, content = (report / "report.html").read_text(), json.loads((report / "report.json").read_text())
    assert len(content["lines"]) == len(DENSE) + 1
    for line in content["lines"]:
        recoveries = [part["recovery"] for part in line["others"]]
        assert all(number(value) in page for value in numbers_of(line["dense"]))
        for part in line["others"]:
            assert all(number(value) in page for value in numbers_of([part["score"], part["difference"]]))
        assert all(number(value, 100) in page for value in numbers_of(recoveries))
        assert line["metric"] in page and line["task"] in page


def test_the_report_needs_nothing_else(report):
    page = (report / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{,30})', page)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page and "<script" not in page
    for name in ("needle", "recovery"):
        assert (report / "images" / f"report_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_escaped(tmp_path):
    write_scores(tmp_path / "a.json", model("<b>&"), DENSE[:1], {})
    main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json"), "--report", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
