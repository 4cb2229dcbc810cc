"""A codec as a user serves it: ``vllm serve MODEL``, compiled, its engine and workers in processes of their own."""

import json
import re
import shutil
from pathlib import Path

import openai
import pytest
import requests as http

from benchmarks.common.browser import open_page
from palu_vllm.attention_backend.codec.served import dense_bytes_per_token
from palu_vllm.format.codec.file import load_codec
from tests.support.codecs.in_transformers import chosen, with_codec
from tests.support.codecs.models import write_codec
from tests.support.live_metrics import metrics
from tests.support.processes.stalls import PATIENCE
from tests.support.serving import prompts, server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

TOKENS, CHROMIUM = 12, shutil.which("chromium")
GRAFANA = Path(__file__).parents[3] / "docker" / "grafana" / "palu.json"
GREEDY = {"temperature": 0.0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True, "return_token_ids": True}}


@pytest.mark.parametrize(("devices", "family"), [(1, "llama"), (2, "qwen2")], ids=["alone", "two"])
def test_tokens_are_those_of_transformers(dense, tmp_path, devices, family):
    """Two devices have one of two groups each; alone it is compiled."""
    codec = write_codec(tmp_path / "codec", dense(family))
    settings = {"palu": {"codec": str(codec), "drift": {"seconds": 0}}}
    arguments = ["--attention-backend=palu", f"--additional-config={json.dumps(settings)}"]
    arguments += ["--dtype=float32", "--max-model-len=512", f"-tp={devices}"]
    arguments += ["--enforce-eager"] if devices > 1 else []
    asked = prompts(6, 45)
    with server(dense(family), tmp_path / "log", *arguments, VLLM_PLUGINS="palu") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        answers = [client.completions.create(model=str(dense(family)), prompt=ids, **GREEDY) for ids in asked]
        info = http.get(f"{running.url}/v1/palu/info").json()
        found = metrics(running)
        if CHROMIUM:
            with open_page(f"{running.url}/v1/palu/dashboard", tmp_path / "browser") as page:
                page.wait_until("document.querySelectorAll('.tile').length > 7", PATIENCE)
                drawn = page.evaluate("document.documentElement.outerHTML")
            assert "Bits per number and layer" in drawn and "drift, mean of layers (largest)" in drawn
            assert drawn.count("<title>layer") == 2 * len(info["layers"]) and 'id="problem" hidden' in drawn
    answers = [answer.choices[0].token_ids for answer in answers]
    with with_codec(dense(family), codec) as model:
        assert answers == [chosen(model, *pair) for pair in zip(asked, answers, strict=True)]
    said, log = load_codec(codec), running.log.read_text()
    before = dense_bytes_per_token(said, "float32")
    banner = f"{said.bytes_per_token:,} bytes of KV cache per token in place of {before:,} in float32"
    assert banner in log and "Cannot use" not in log
    assert info["bytes_per_token"] == said.bytes_per_token == found["palu_cache_bytes_per_token"]
    asked_of = set(re.findall(r"(?:vllm:|palu_)\w+", " ".join(re.findall(r'"expr": "(.+)"', GRAFANA.read_text()))))
    assert asked_of <= {*found, "palu_codec_kl"}, "the codec has no report, so its KL is not known"
    assert found["palu_codec_drift_ratio"] > 0 and found["palu_codec_drift_tokens"] >= sum(map(len, asked)) / 4
