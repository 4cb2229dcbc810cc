"""The verdict on a soak, by the samples of one that was run; and soaks that fail."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.common.provenance import ROOT
from benchmarks.load.soak.report import page, picture
from benchmarks.load.soak.server_state import Sample, idle
from benchmarks.load.soak.verdict import GROWTH_LIMIT, growth, violations
from tests.support.serving import outside

KEPT, CODEC = (ROOT / "benchmarks" / "results" / name for name in ("load_soak.json", "load_soak_codec.json"))


@pytest.fixture(scope="module")
def report():
    return json.loads(KEPT.read_text())


@pytest.fixture(scope="module")
def recorded(report):
    """Result, samples and last sample of the soak whose report is kept."""
    return report["load"], [Sample(**row) for row in report["samples"]], Sample(**report["final"])


def with_slope(samples, share_per_minute):
    """The same samples with memory that also grows by a share of its first size."""
    first = samples[0].rss_bytes
    return [replace(s, rss_bytes=s.rss_bytes + int(first * share_per_minute * s.second / 60)) for s in samples]


def test_the_kept_soak_passed(report, recorded):
    assert report["passed"] and violations(*recorded, log="") == []
    assert report["load"]["requests"]["failed"] == 0 and idle(recorded[2])
    assert max(sample.cache_usage for sample in recorded[1]) > 0, "nothing was cached"


def test_the_kept_soak_of_a_codec_drafted(recorded):
    kept = json.loads(CODEC.read_text())
    samples, final = [Sample(**row) for row in kept["samples"]], Sample(**kept["final"])
    assert kept["passed"] and violations(kept["load"], samples, final, log="") == []
    assert kept["load"]["seconds"] >= 300 and kept["server"]["accepted_drafts"] > 0


def test_an_error_fails_it(recorded):
    result, samples, final = recorded
    failed = {**result, "requests": {**result["requests"], "failed": 1}, "errors": {"APIError: x": 1}}
    assert violations(failed, samples, final, "") == ["1 requests failed: {'APIError: x': 1}."]


def test_a_missed_objective_fails_it(recorded):
    result, samples, final = recorded
    (sentence,) = violations({**result, "missed": ["90 % met it."]}, samples, final, "")
    assert "90 % met it." in sentence


@pytest.mark.parametrize("held", [{"running": 1.0}, {"waiting": 2.0}, {"cache_usage": 1 / 384}])
def test_a_request_or_a_single_block_that_stays_fails_it(recorded, held):
    result, samples, final = recorded
    (sentence,) = violations(result, samples, replace(final, **held), "")
    assert sentence.startswith("After the load")


def test_growing_memory_fails_it(recorded):
    result, samples, final = recorded
    (sentence,) = violations(result, with_slope(samples, 3 * GROWTH_LIMIT), final, "")
    assert sentence.startswith("Memory grows")


def test_a_traceback_in_the_log_fails_it(recorded):
    assert violations(*recorded, log="Traceback (most recent call last):") == ["The server's log has a traceback."]


def test_growth_is_the_slope_of_the_second_half():
    flat = [Sample(float(second), 10**9, 1, 0, 0.5, 0) for second in range(0, 60, 2)]
    assert growth(flat) == 0
    assert growth(with_slope(flat, 0.01)) == pytest.approx(0.01, rel=0.02)
    early = [replace(s, rss_bytes=s.rss_bytes // (2 if s.second < 29 else 1)) for s in flat]
    assert growth(early) == 0, "what was allocated in the first half counts"
    step = [replace(s, rss_bytes=s.rss_bytes + (10**8 if s.second == 40 else 0)) for s in flat]
    assert growth(step) == 0, "one sample decides"
    idling = [Sample(60.0 + second, 2 * 10**9, 0, 0, 0, 0) for second in range(0, 300, 2)]
    assert growth(with_slope(flat, 0.01) + idling) == growth(with_slope(flat, 0.01)), "the idle end counts"


def test_a_soak_that_was_too_short_fails(recorded):
    result, samples, final = recorded
    assert growth(samples[:3]) is None
    assert violations(result, samples[:3], final, "") == ["Requests ran too shortly to say whether memory grows."]


def test_the_page_has_verdict_and_picture(report, recorded):
    drawn = page(report, picture(recorded[1]))
    assert "passed" in drawn and "data:image/png;base64," in drawn and "http" not in drawn.split("base64,")[0]


@pytest.mark.slow
@pytest.mark.serving
def test_a_real_soak_fails(palu, tmp_path: Path):
    """Some prompts have ids beyond the vocabulary of 512, and no first token comes within ten microseconds."""
    command = [sys.executable, "-m", "benchmarks.load.soak", "--seconds", "20", "--users", "2", "--out", str(tmp_path)]
    command += ["--picture", str(tmp_path), "--model", str(palu("llama", (32, 24), (40, 16)))]
    more = ["--", "--slo-ttft-ms", "0.01", "--vocabulary", "514"]
    ended = subprocess.run([*command, *more], capture_output=True, text=True, env=outside({}))
    assert ended.returncode == 1, ended.stderr
    assert "SOAK FAILED: The load missed: 0.00% of the requests met TTFT 0.01 ms" in ended.stdout
    assert "requests failed: {'APIError: Token id 51" in ended.stdout
    assert not json.loads((tmp_path / "load_soak.json").read_text())["passed"]
