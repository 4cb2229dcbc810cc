"""Schemathesis, with requests made from the routes' own OpenAPI description, finds nothing that it does not say."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException

from palu_vllm.server.endpoint import PaluEndpoint
from tests.support.live_metrics import eventually

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def application(info: dict | None) -> FastAPI:
    """The routes without vLLM's; ``info`` is what they know of the model."""
    app = FastAPI()
    PaluEndpoint().attach_router(app)
    app.state.palu_info = info
    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an HTTP server in this process."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            eventually(lambda: running.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


def examine(app: FastAPI, work: Path) -> subprocess.CompletedProcess:
    with served(app) as url:
        command = [SCHEMATHESIS, "run", f"{url}/openapi.json", "--checks", "all", "--max-examples", "30",
                   "--phases", "coverage,fuzzing", "--seed", "0", "--no-color"]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, cwd=work)


@pytest.mark.parametrize("info", [{"rank_k": [32, 24], "model": "OUT"}, None], ids=["a palu model", "another model"])
def test_the_routes_are_as_described(info, tmp_path):
    ended = examine(application(info), tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "Selected: 2/2" in ended.stdout and "Tested: 2" in ended.stdout


def test_it_would_find_an_answer_that_is_not_described(tmp_path):
    app = application({})

    @app.get("/v1/palu/other")
    async def other() -> None:
        raise HTTPException(500, "broken")

    ended = examine(app, tmp_path)
    assert ended.returncode == 1 and "Server error" in ended.stdout and "/v1/palu/other" in ended.stdout
