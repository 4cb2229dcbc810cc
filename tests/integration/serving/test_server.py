"""A server as a user starts it: ``vllm serve OUT --attention-backend palu``, compiled, its engine spawned."""

import asyncio
import re
import subprocess

import openai
import pytest

from palu_vllm.format.checkpoint import read_config
from tests.support.serving import VLLM, engine, greedy, outside, prompts, server

pytestmark = pytest.mark.serving

TOKENS = 12
POOL_BYTES = 2**30  # VLLM_CPU_KVCACHE_SPACE in conftest
GREEDY = {"temperature": 0.0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True, "return_token_ids": True}}


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", (32, 24), (40, 16))


@pytest.fixture(scope="module")
def requests_and_tokens(model):
    """16 requests and what an eager engine in this process answers."""
    requests = prompts(*range(3, 83, 5))
    with engine(model, attention_backend="palu") as llm:
        return requests, greedy(llm, requests, TOKENS)


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "512")
    with server(model, log, *arguments) as running:
        yield running
    assert running.process.returncode == 0


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_completion(client, model, requests_and_tokens):
    request, expected = (values[0] for values in requests_and_tokens)
    answer = client.completions.create(model=str(model), prompt=request, **GREEDY)
    assert answer.choices[0].token_ids == expected


def test_chat(client, model):
    message = {"role": "user", "content": "How many tokens fit?"}
    answer = client.chat.completions.create(model=str(model), messages=[message], temperature=0.0, max_tokens=TOKENS)
    assert answer.usage.completion_tokens == TOKENS or answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content


def test_sixteen_concurrent_streams(running, model, requests_and_tokens):
    requests, expected = requests_and_tokens

    async def stream(client, request):
        options = {"model": str(model), "prompt": request, "stream": True, **GREEDY}
        parts = [part async for part in await client.completions.create(**options)]
        assert len(parts) > 1
        return [token for part in parts for choice in part.choices for token in choice.token_ids or ()]

    async def all_streams():
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, request) for request in requests))

    assert len(requests) == 16
    assert asyncio.run(all_streams()) == expected


def test_reported_capacity_and_banner(running, model):
    _, palu, geometry = read_config(model)
    bytes_per_token = palu.bytes_per_token(geometry, "float32")
    log = running.log.read_text()
    tokens = int(re.search(r"KV cache size: ([\d,]+) tokens", log)[1].replace(",", ""))
    assert tokens == pytest.approx(POOL_BYTES / bytes_per_token, rel=0.02)
    dense = geometry.dense_bytes_per_token("float32")
    saved = f"{dense:,} ({dense / bytes_per_token:.2f}x the"
    banner = f"{bytes_per_token:,} bytes of KV cache per token in float32 instead of {saved}"
    assert log.count(banner) == 1
    assert "rank_k 24-32, rank_v 16-40" in log and "torch kernels" in log
    assert "Cannot use" not in log, "vLLM replaced the backend"


def test_dense_model_ends_in_one_sentence(dense):
    command = [VLLM, "serve", dense(), "--attention-backend", "palu", "--dtype", "float32", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, env=outside({}))
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert "is neither a palu checkpoint nor has a codec" in last and "palu-calibrate" in last


@pytest.mark.slow
def test_tensor_parallel(palu):
    """Two devices, each with one of two groups; biases show that the one of o_proj is added once."""
    directory, requests = palu("qwen2", (32, 24), (40, 16)), prompts(6, 45)
    with engine(directory, attention_backend="palu") as llm:
        expected = greedy(llm, requests, TOKENS)
    with engine(directory, attention_backend="palu", tensor_parallel_size=2) as llm:
        assert greedy(llm, requests, TOKENS) == expected
