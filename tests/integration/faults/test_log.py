"""A disk that is full for the log before the server starts. One that fills later: ``test_faults_processes.py``."""

import os
import subprocess
from pathlib import Path

import openai
import pytest

from tests.support.serving import VLLM, engine, greedy, outside, prompts, server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

FULL = Path("/dev/full")  # every write fails: no space left on device
WITNESS = """import pathlib, sys, traceback
def told(*what):
    pathlib.Path(__file__).with_name("why").write_text("".join(traceback.format_exception(*what)))
sys.excepthook = told
"""
ARGUMENTS = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
REQUEST = prompts(40)[0]


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", (32, 24), (40, 16))


def test_it_serves_without_vllms_progress_bar(model):
    with engine(model) as llm:
        expected = greedy(llm, [REQUEST], 12)[0]
    with server(model, FULL, *ARGUMENTS, "--no-use-tqdm-on-load", VLLM_PLUGINS="palu") as running:
        files = [Path(f"/proc/{running.process.pid}/fd/{stream}").readlink() for stream in (1, 2)]
        assert files == [FULL, FULL]
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        options = {"temperature": 0.0, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
        for _ in range(3):
            answer = client.completions.create(model=str(model), prompt=REQUEST, max_tokens=12, **options)
            assert answer.choices[0].token_ids == expected


def test_vllms_progress_bar_is_what_ends_it_at_the_start(model, tmp_path):
    """Only stderr is full, so that stdout can tell; and of what ends a process before it logs, a file."""
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [VLLM, "serve", model, *ARGUMENTS, "--port", "0"]
    with FULL.open("w") as full:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=full, text=True, env=outside({"PYTHONPATH": paths})
        )
    assert ended.returncode == 1
    cause = "OSError: [Errno 28] No space left on device"
    found = any(line.endswith(cause) for line in ended.stdout.splitlines()) and "for st_file in tqdm(" in ended.stdout
    assert found, ended.stdout[-3000:] + "".join(file.read_text() for file in tmp_path.glob("why"))
