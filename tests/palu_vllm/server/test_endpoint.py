"""The route and the page, without an engine; with one: ``tests/integration/serving/test_observability.py``."""

import asyncio
import re
from argparse import Namespace
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from palu_vllm.format.checkpoint import read_config
from palu_vllm.format.codec.file import load_codec
from palu_vllm.server.endpoint import PAGE, PaluEndpoint
from tests.support.codecs.models import write_codec


def client_of(model, **settings):
    """An application as vLLM builds it, around the configuration of ``model``, None for a server without an engine."""
    app, plugin = FastAPI(), PaluEndpoint()
    engine = None
    if model is not None:
        config = EngineArgs(model=str(model), dtype="float32", enforce_eager=True, **settings).create_engine_config()
        engine = SimpleNamespace(vllm_config=config, shutdown=lambda timeout=None: None, errored=False)
    plugin.attach_router(app)
    asyncio.run(plugin.init_state(engine, app.state, Namespace()))
    return TestClient(app)


def test_it_is_what_vllm_asks_for():
    assert isinstance(PaluEndpoint(), EndpointPlugin)


def test_info_says_what_the_checkpoint_says(palu):
    model = palu("llama", (32, 24), (40, 16))
    _, config, geometry = read_config(model)
    answer = client_of(model).get("/v1/palu/info").json()
    assert (answer["rank_k"], answer["rank_v"]) == (config.rank_k, config.rank_v)
    assert answer["bytes_per_token"] == config.bytes_per_token(geometry, "float32")
    assert answer["dense_bytes_per_token"] == geometry.dense_bytes_per_token("float32")
    assert answer["dtype"] == "float32" and answer["model"] == str(model) and answer["kind"] == "latents"


def test_info_says_what_the_codec_says(dense, tmp_path):
    codec = write_codec(tmp_path / "english", dense(), layers=[1])
    settings = {"additional_config": {"palu": {"codec": str(codec)}}}
    answer = client_of(dense(), **settings).get("/v1/palu/info").json()
    assert answer["kind"] == "codec" and answer["codec"] == "english" and str(tmp_path) not in str(answer)
    assert (answer["layers"], answer["layers_left_dense"], answer["bits_k"]) == ([1], [0], [4])
    assert answer["bytes_per_token"] == load_codec(codec).bytes_per_token and answer["kl"] is None


@pytest.mark.parametrize("has_engine", [True, False])
def test_another_model_gets_one_sentence(dense, has_engine):
    answer = client_of(dense() if has_engine else None).get("/v1/palu/info")
    assert answer.status_code == 404 and "not a palu model" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_written(palu, method):
    client = client_of(palu("llama", (32, 24), (40, 16)))
    for route in ("info", "dashboard"):
        assert getattr(client, method)(f"/v1/palu/{route}").status_code == 405


def test_the_page_loads_nothing_from_elsewhere():
    page = PAGE.read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\"' )]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address that is fetched
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page) and "@import" not in page
