"""The locustfile as it is run: headless, in a process of its own, against a live server, beside the server's counts."""

import csv
import json
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.metrics import metrics
from benchmarks.load.client.arrivals import schedule
from benchmarks.load.command import locust_command, locust_environment
from benchmarks.load.soak.server_state import idle, sample_when_idle
from tests.support.serving import server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

LENGTHS = ("--prompt-tokens", "uniform:20:60", "--output-tokens", "uniform:8:16")


@dataclass(frozen=True)
class Ended:
    """A run of locust; ``counted`` is by how much the server's counters rose."""

    code: int
    output: str
    result: dict
    counted: dict[str, float]


@pytest.fixture(scope="module")
def running(palu, tmp_path_factory):
    log = tmp_path_factory.mktemp("load") / "log"
    arguments = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
    with server(palu("llama", (32, 24), (40, 16)), log, *arguments) as running:
        yield running


def load(running, folder: Path, *arguments: str) -> Ended:
    before = metrics(running.url)
    command = locust_command(["--headless", "--only-summary", "--host", running.url, *LENGTHS, *arguments])
    command += ["--json-result", str(folder / "result.json"), "--json-rows"]
    ended = subprocess.run(command, env=locust_environment(), capture_output=True, text=True)
    after = metrics(running.url)
    counted = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return Ended(
        ended.returncode,
        ended.stdout + ended.stderr,
        json.loads((folder / "result.json").read_text()),
        counted,
    )


@pytest.fixture(scope="module")
def closed(running, tmp_path_factory):
    """Thirty requests of four users, with csv and html."""
    folder = tmp_path_factory.mktemp("closed")
    files = ("--csv", str(folder / "load"), "--html", str(folder / "load.html"))
    ended = load(running, folder, "--users", "4", "--requests", "30", "--slo-e2e-ms", "60000", *files)
    with (folder / "load_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    return ended, rows, (folder / "load.html").read_text()


def test_numbers_agree_with_those_of_the_server(closed):
    ended, _, _ = closed
    assert ended.code == 0, ended.output
    assert ended.result["requests"] == {"sent": 30, "finished": 30, "hung_up": 0, "failed": 0}
    assert ended.counted["vllm:prompt_tokens_total"] == ended.result["prompt_tokens"]
    assert ended.counted["vllm:generation_tokens_total"] == ended.result["output_tokens"]
    assert ended.counted["vllm:request_success_total"] == 30
    theirs = ended.counted["vllm:e2e_request_latency_seconds_sum"] / 30
    assert 1000 * theirs <= ended.result["e2e_ms"]["mean"]
    assert ended.counted["vllm:prefix_cache_hits_total"] == 0, "two prompts began alike"


def test_lengths_are_those_that_were_asked_for(closed):
    rows = closed[0].result["rows"]
    assert all(20 <= row["prompt_tokens"] <= 60 and 8 <= row["output_tokens"] <= 16 for row in rows)
    assert all(row["sent"] <= row["first"] < row["last"] for row in rows)
    assert sorted(row["index"] for row in rows) == list(range(30))


def test_csv_and_html_have_the_statistics(closed):
    ended, rows, html = closed
    request = rows["/v1/completions from sending"]
    assert request["Request Count"] == rows["Aggregated"]["Request Count"] == "30"
    for name, found in (("time to first token", "ttft_ms"), ("time per output token", "tpot_ms")):
        assert float(rows[name]["Average Response Time"]) == pytest.approx(ended.result[found]["mean"], rel=1e-3)
        assert name in html
    assert 30 * float(rows["output"]["Average Response Time"]) == pytest.approx(ended.result["output_tokens"])
    assert rows["goodput: e2e 60000"]["Failure Count"] == "0"


def test_the_result_says_what_was_measured(closed):
    result = closed[0].result
    assert "closed loop: up to 4 users" in result["load"] and result["load"] in closed[0].output
    assert result["options"]["seed"] == 0 and result["options"]["users"] == 4
    assert {"cpu_percent_p90", "loop_lag_ms_p90", "saturated"} <= result["client"].keys()
    assert "locust" in " ".join(result["provenance"]["command"])


def test_an_open_loop_counts_from_its_schedule_and_an_objective_sets_the_exit_code(running, tmp_path):
    """Twenty arrivals in half a second are more than the server can start at once."""
    arguments = ("--rate", "40", "--requests", "20", "--seed", "5", "--slo-ttft-ms", "0.01", "--goodput", "0.5")
    ended = load(running, tmp_path, *arguments)
    assert ended.code == 1
    assert "MISSED: 0.00% of the requests met TTFT 0.01 ms; asked for are 50.00% (--goodput)." in ended.output
    rows = sorted(ended.result["rows"], key=lambda row: row["index"])
    planned = schedule("poisson", 40.0, "steady", None, 20, 5)
    np.testing.assert_allclose([row["scheduled"] for row in rows], planned, atol=1e-5)
    assert all(row["sent"] >= row["scheduled"] - 1e-5 for row in rows)
    assert any(later["sent"] < row["last"] for row, later in pairwise(rows)), "the loop was closed"
    from_schedule = np.mean([row["first"] - row["scheduled"] for row in rows])
    assert ended.result["ttft_ms"]["mean"] == pytest.approx(1000 * from_schedule, abs=0.05)


def test_clients_that_hang_up_leave_nothing_behind(running, tmp_path):
    ended = load(running, tmp_path, "--users", "6", "--requests", "24", "--load-shape", "disconnect", "--seed", "9")
    assert ended.code == 0, ended.output
    counts = ended.result["requests"]
    assert counts["hung_up"] >= 6 and counts["hung_up"] + counts["finished"] == 24
    assert ended.result["ttft_ms"] and len([row for row in ended.result["rows"] if row["hung_up"]]) == counts["hung_up"]
    assert idle(sample_when_idle(running.url, running.process.pid, 30))


def test_failed_requests_set_the_exit_code(running, tmp_path):
    """Ids beyond the vocabulary are refused by the server."""
    ended = load(running, tmp_path, "--users", "2", "--requests", "2", "--vocabulary", "100000")
    assert ended.code == 1
    assert "MISSED: 100.00% of 2 requests failed" in ended.output
    assert "out of vocabulary" in str(ended.result["errors"])


def test_a_server_that_is_not_there_ends_in_a_sentence():
    command = locust_command(["--headless", "--host", "http://127.0.0.1:9", "--requests", "1"])
    ended = subprocess.run(command, env=locust_environment(), capture_output=True, text=True)
    assert ended.returncode == 2
    assert "locust: error: Connection error." in ended.stderr and "Traceback" not in ended.stderr
