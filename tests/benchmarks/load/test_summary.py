"""Statistics and verdicts beside hand computed cases, and beside what vLLM computes of the same requests."""

import numpy as np
import pytest
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.serve import calculate_metrics

from benchmarks.load.client.client_health import judge_client
from benchmarks.load.client.outcome import Outcome
from benchmarks.load.objectives import Objectives, goodput, meets, missed
from benchmarks.load.summary import spread, summarize

LATE = Outcome(0, scheduled=10.0, sent=10.5, first=11.0, last=13.0, prompt_tokens=20, output_tokens=5)
SINGLE = Outcome(1, scheduled=10.0, sent=10.0, first=10.2, last=10.2, prompt_tokens=10, output_tokens=1)
GONE = Outcome(2, scheduled=11.0, sent=11.0, first=11.5, last=11.6, hung_up=True)
FAILED = Outcome(3, scheduled=12.0, sent=12.0, error="APIError: no")
ALL = [LATE, SINGLE, GONE, FAILED]


def test_times_count_from_the_scheduled_start():
    assert (LATE.ttft, LATE.e2e, LATE.send_delay) == (1.0, 3.0, 0.5)
    assert LATE.tpot == pytest.approx((3.0 - 1.0) / 4)
    assert (SINGLE.tpot, SINGLE.e2e) == (None, pytest.approx(0.2))
    assert (GONE.ttft, GONE.tpot, GONE.e2e) == (0.5, None, None)
    assert (FAILED.ttft, FAILED.tpot, FAILED.e2e) == (None, None, None)
    assert LATE.row(start=10.0)["last"] == 3.0


def test_summary_of_four_requests():
    found = summarize(ALL, Objectives(ttft_ms=600, goodput=0.3))
    assert found["requests"] == {"sent": 4, "finished": 2, "hung_up": 1, "failed": 1}
    assert found["seconds"] == 3.0
    assert (found["prompt_tokens"], found["output_tokens"]) == (30, 6)
    assert found["output_tokens_per_second"] == 2.0
    assert found["ttft_ms"]["p50"] == 500.0 and found["ttft_ms"]["max"] == 1000.0
    assert found["tpot_ms"]["mean"] == 500.0
    assert found["e2e_ms"]["mean"] == 1600.0
    assert found["ttft_from_send_ms"]["max"] == 500.0
    assert found["errors"] == {"APIError: no": 1}
    assert found["goodput"]["share"] == pytest.approx(1 / 3, abs=1e-4)  # of SINGLE, LATE and FAILED
    assert found["goodput"]["requests_per_second"] == pytest.approx(1 / 3, abs=1e-4)


def test_nothing_is_summarized_to_nothing():
    empty = summarize([], Objectives(ttft_ms=1))
    assert empty["requests"]["sent"] == 0
    assert empty["ttft_ms"] is empty["goodput"] is empty["requests_per_second"] is None
    assert spread([None, None]) is None


def random_outcomes(count=200):
    generator = np.random.default_rng(3)
    ttft, decode = generator.exponential(0.3, count), generator.exponential(2.0, count)
    tokens = generator.integers(1, 40, count)
    return [
        Outcome(i, i / 10, i / 10, i / 10 + ttft[i], i / 10 + ttft[i] + decode[i] * (n > 1), 7, int(n))
        for i, n in enumerate(tokens)
    ]


def test_definitions_are_those_of_vllm():
    outcomes = random_outcomes()
    theirs = [
        RequestFuncOutput(
            success=True, latency=o.e2e, ttft=o.ttft, output_tokens=o.output_tokens, prompt_len=7, itl=[0.1],
            start_time=o.sent,
        )
        for o in outcomes
    ]  # fmt: skip
    limits = {"ttft": 400.0, "tpot": 150.0, "e2el": 3000.0}
    ours = summarize(outcomes, Objectives(400.0, 150.0, 3000.0))
    metrics, _ = calculate_metrics([], theirs, ours["seconds"], None, [50, 90, 95, 99], limits)
    for name in ("ttft", "tpot"):
        assert ours[f"{name}_ms"]["mean"] == pytest.approx(getattr(metrics, f"mean_{name}_ms"), abs=1e-3)
        for percentile, value in getattr(metrics, f"percentiles_{name}_ms"):
            assert ours[f"{name}_ms"][f"p{percentile:g}"] == pytest.approx(value, abs=1e-3)
    assert ours["e2e_ms"]["p50"] == pytest.approx(metrics.median_e2el_ms, abs=1e-3)
    assert ours["goodput"]["requests_per_second"] == pytest.approx(metrics.request_goodput, abs=1e-3)
    assert ours["output_tokens"] == metrics.total_output


@pytest.mark.parametrize(
    ("limits", "met"),
    [({}, True), ({"ttft_ms": 1000}, True), ({"ttft_ms": 999}, False), ({"tpot_ms": 499}, False),
     ({"tpot_ms": 500, "e2e_ms": 3000}, True), ({"ttft_ms": 2000, "e2e_ms": 2999}, False)],
)  # fmt: skip
def test_a_request_meets_all_limits_or_none(limits, met):
    assert meets(LATE, Objectives(**limits)) is met
    assert not meets(FAILED, Objectives(**limits))


def test_verdicts():
    calm = Objectives(max_error_rate=0.25)
    assert missed(ALL, calm) == [] and goodput(ALL, calm) is None
    (errors,) = missed(ALL, Objectives())
    assert "25.00% of 4 requests failed" in errors and "--max-error-rate" in errors
    (slow,) = missed([LATE, SINGLE], Objectives(ttft_ms=600, goodput=0.6))
    assert "50.00% of the requests met TTFT 600 ms" in slow and "60.00% (--goodput)" in slow
    assert missed([LATE, SINGLE], Objectives(ttft_ms=600, goodput=0.5)) == []
    assert any("No request was answered" in sentence for sentence in missed([FAILED], calm))
    assert any("No request was answered" in sentence for sentence in missed([], calm))


def test_a_saturated_client_is_flagged():
    assert not judge_client([10.0] * 95 + [99.0] * 5, [1.0] * 100)["saturated"]
    busy = judge_client([95.0] * 100, [1.0] * 100)
    assert busy["saturated"] and "95 % of a core" in busy["reasons"][0]
    late = judge_client([10.0] * 100, [1.0] * 80 + [80.0] * 20)
    assert late["saturated"] and "80 ms late" in late["reasons"][0]
    assert not judge_client([], [])["saturated"]
