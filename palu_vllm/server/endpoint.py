"""``GET /v1/palu/info`` and ``GET /v1/palu/dashboard``: entry point ``vllm.endpoint_plugins``.

vLLM loads it only where ``VLLM_PLUGINS`` names ``palu``. Both routes lie below ``/v1``, which ``--api-key`` guards,
read only, and reveal no prompt. vLLM internals used: the ``EndpointPlugin`` protocol (public) and
``engine_client.vllm_config``.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import vllm
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from starlette.datastructures import State
from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient

from palu_vllm.server.engine_death import fail_after_engine_death
from palu_vllm.server.facts import served_facts
from palu_vllm.version import __version__

PAGE = Path(__file__).with_name("dashboard.html")
router = APIRouter(prefix="/v1/palu", tags=["palu"])


def describe(vllm_config: VllmConfig) -> dict[str, Any] | None:
    """What is served, as JSON; None where it is neither a palu model nor has a codec."""
    facts = served_facts(vllm_config)
    if facts is None:
        return None
    model, cache = vllm_config.model_config, vllm_config.cache_config
    return facts.as_json() | {
        "version": __version__,
        "vllm_version": vllm.__version__,
        "model": model.served_model_name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "capacity_tokens": getattr(cache, "kv_cache_size_tokens", None),
        "block_size": cache.block_size,
        "prefix_caching": bool(cache.enable_prefix_caching),
    }


@router.get("/info", responses={404: {"description": "The served model is not a palu model."}})
async def info(request: Request) -> dict[str, Any]:
    """What the cache of this server holds."""
    described = getattr(request.app.state, "palu_info", None)
    if described is None:
        raise HTTPException(404, "the model of this server is not a palu model; see palu-compress.")
    return described


@router.get("/dashboard", response_class=HTMLResponse)
async def dashboard() -> str:
    """One page, without anything from elsewhere, that draws this server's ranks, bytes and load."""
    return PAGE.read_text(encoding="utf-8")


class PaluEndpoint:
    """What vLLM asks of an endpoint plugin."""

    name = "palu"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        state.palu_info = describe(engine_client.vllm_config) if engine_client is not None else None
        if state.palu_info is not None:
            fail_after_engine_death(engine_client)
