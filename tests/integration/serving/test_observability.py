"""A live server's metrics, info route and page, the page in a real Chromium."""

import json
import re
import shutil
import urllib.error
from pathlib import Path

import openai
import pytest

from benchmarks.common.browser import open_page
from palu_vllm.format.checkpoint import read_config
from tests.support.live_metrics import eventually, get, metrics
from tests.support.processes.stalls import PATIENCE
from tests.support.serving import prompts, server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

KEY = "a secret of this test"
# what the page has drawn of its load: points of the line of tokens per second, and whether one lies above the ground
POINTS = "(document.querySelector('path.speed')?.getAttribute('d') ?? '').slice(1).split('L')"
RISEN = "point => Number(point.split(',')[1]) < 140"
GRAFANA = Path(__file__).parents[3] / "docker" / "grafana" / "palu.json"


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", (32, 24), (40, 16))


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("observed") / "log"
    arguments = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
    with server(model, log, *arguments, "--api-key", KEY, VLLM_PLUGINS="palu") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0)
        for request in prompts(40, 40):
            client.completions.create(model=str(model), prompt=request, max_tokens=8, extra_body={"ignore_eos": True})
        yield running


def test_metrics_say_what_the_checkpoint_and_the_log_say(running, model):
    _, palu, geometry = read_config(model)
    found = metrics(running)
    capacity = int(re.search(r"KV cache size: ([\d,]+) tokens", running.log.read_text())[1].replace(",", ""))
    assert found["palu_cache_bytes_per_token"] == palu.bytes_per_token(geometry, "float32")
    assert found["palu_cache_capacity_tokens"] == capacity
    assert found["palu_info"] == 1


def test_bytes_in_use_rise_with_a_running_request_and_fall_again(running, model):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0)
    stream = client.completions.create(
        model=str(model), prompt=prompts(64)[0], max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    used = [metrics(running)["palu_cache_used_bytes"] for part, _ in zip(stream, range(40), strict=False)]
    assert max(used) > 0
    for _ in stream:
        pass
    assert eventually(lambda: metrics(running)["palu_cache_used_bytes"] == 0)


def test_every_metric_of_the_grafana_dashboard_exists(running):
    """Those of codecs: ``tests/integration/codec/test_server.py``."""
    found = set(metrics(running))
    for panel in json.loads(GRAFANA.read_text())["panels"]:
        for target in panel.get("targets", []):
            names = set(re.findall(r"(?:vllm:|palu_)\w+", target["expr"]))
            missing = {name for name in names - found if not name.startswith("palu_codec_")}
            assert names and not missing, (panel["title"], missing)


@pytest.mark.parametrize("route", ["info", "dashboard"])
def test_the_routes_want_the_api_key(running, route):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(f"{running.url}/v1/palu/{route}")
    assert get(f"{running.url}/v1/palu/{route}", KEY)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_draws_in_a_real_browser(running, model, tmp_path):
    """With the key that a proxy would add."""
    info = json.loads(get(f"{running.url}/v1/palu/info", KEY))
    guarded = {"Authorization": f"Bearer {KEY}"}
    with open_page(f"{running.url}/v1/palu/dashboard", tmp_path / "browser", guarded) as page:
        page.wait_until(f"{POINTS}.length > 1", PATIENCE)
        assert page.evaluate(f"{POINTS}.some({RISEN})") is False
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0)
        client.completions.create(model=str(model), prompt=prompts(40)[0], max_tokens=64)
        page.wait_until(f"{POINTS}.some({RISEN})", PATIENCE)
        drawn = page.evaluate("document.documentElement.outerHTML")
        page.screenshot(tmp_path / "page.png")
    assert f"{info['compression_ratio']:.2f}x" in drawn
    assert f"{info['bytes_per_token']:,} bytes" in drawn and f"{info['dense_bytes_per_token']:,} bytes" in drawn
    assert drawn.count("<title>layer") == 2 * len(info["rank_k"])
    assert re.search(r'id="problem" hidden', drawn), "the page reports a problem"
    assert (tmp_path / "page.png").stat().st_size > 10_000
