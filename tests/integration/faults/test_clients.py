"""Clients that hang up, that are too many, or that ask for nonsense: the server keeps no block and no wrong token."""

import asyncio
import json
import urllib.error
import urllib.request

import openai
import pytest

from tests.support.live_metrics import eventually, get, in_use, metrics
from tests.support.processes.stalls import PATIENCE
from tests.support.serving import Server, prompts, server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

BLOCKS, BLOCK = 400, 16
ARGUMENTS = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager",
             "--served-model-name", "served", "--block-size", str(BLOCK), "--num-gpu-blocks-override", str(BLOCKS),
             "--max-num-seqs", "256", "--no-enable-prefix-caching")  # fmt: skip
GREEDY = {"model": "served", "temperature": 0.0, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
CLIENTS = 200
STORM, TOKENS = prompts(*range(60, 108)), 120
PREEMPTIONS = "vllm:num_preemptions_total"


@pytest.fixture(scope="module")
def running(palu, tmp_path_factory):
    model = palu("llama", (32, 24), (40, 16))
    with server(model, tmp_path_factory.mktemp("clients") / "log", *ARGUMENTS) as running:
        yield running
    assert running.process.returncode == 0


def complete(running: Server, requests: list[list[int]], max_tokens: int) -> list[list[int]]:
    """The tokens of all requests, sent at once."""

    async def all_of_them() -> list:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            create = client.completions.create
            return await asyncio.gather(*(create(prompt=ids, max_tokens=max_tokens, **GREEDY) for ids in requests))

    return [answer.choices[0].token_ids for answer in asyncio.run(all_of_them())]


@pytest.fixture(scope="module")
def calm(running) -> list[list[int]]:
    """What the server says to the requests of the storm twelve at a time, for which there is room."""
    tokens = [answer for first in range(0, len(STORM), 12) for answer in complete(running, STORM[first:][:12], TOKENS)]
    assert metrics(running)[PREEMPTIONS] == 0
    return tokens


def idle(running: Server) -> bool:
    return in_use(running) == (0, 0, 0)


def test_a_storm_of_preemptions_changes_no_token(running, calm):
    assert sum(len(ids) + TOKENS for ids in STORM) > BLOCKS * BLOCK
    assert complete(running, STORM, TOKENS) == calm
    assert metrics(running)[PREEMPTIONS] > 0
    assert eventually(lambda: idle(running)), in_use(running)


def test_two_hundred_clients_hang_up_in_mid_stream(running, calm):
    async def hang_up() -> tuple[float, float, float]:
        reading = asyncio.Barrier(CLIENTS + 1)

        async def one(client: openai.AsyncOpenAI, ids: list[int]) -> None:
            """Reads until a token came, waits for the others, and closes its connection."""
            stream = await client.completions.create(prompt=ids, max_tokens=400, stream=True, **GREEDY)
            first = await anext(aiter(stream))
            assert first.choices[0].token_ids and first.choices[0].finish_reason is None
            await reading.wait()
            await stream.close()

        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            tasks = [asyncio.create_task(one(client, ids)) for ids in prompts(*[8] * CLIENTS, salt=3)]
            await reading.wait()
            held = await asyncio.to_thread(in_use, running)
            await asyncio.gather(*tasks)
        return held

    finished = metrics(running)["vllm:request_success_total"]
    ran, _, held = asyncio.run(hang_up())
    assert ran > 0 and held > 0, "nothing ran when the clients hung up"
    assert eventually(lambda: idle(running)), in_use(running)
    assert metrics(running)["vllm:request_success_total"] - finished < CLIENTS / 2, "they were not cut off"
    assert complete(running, STORM[:2], TOKENS) == calm[:2]


COMPLETION = {"model": "served", "prompt": [1, 2, 3], "max_tokens": 4}
BAD = {
    "longer than the limit": (COMPLETION | {"prompt": list(range(256)) * 3}, 400, "maximum"),
    "prompt and answer longer": (COMPLETION | {"max_tokens": 5000}, 400, "max_tokens"),
    "no JSON": ("{'model': ", 400, "JSON"),
    "another model": (COMPLETION | {"model": "gpt-4"}, 404, "gpt-4"),
    "negative max_tokens": (COMPLETION | {"max_tokens": -1}, 400, "max_tokens"),
    "no prompt": ({"model": "served"}, 400, "prompt"),
    "empty prompt": (COMPLETION | {"prompt": []}, 400, "prompt"),
    "token outside the vocabulary": (COMPLETION | {"prompt": [1, 10**6]}, 400, "vocab"),
    "negative temperature": (COMPLETION | {"temperature": -1}, 400, "temperature"),
    "nothing": ("", 400, ""),
}


def post(running: Server, body: object) -> tuple[int, str]:
    """Status and message of the answer to a completion request."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    request = urllib.request.Request(f"{running.url}/v1/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_a_sentence_and_harms_nobody(running, calm, case):
    body, status, word = BAD[case]
    code, message = post(running, body)
    assert (code, word in message, bool(message)) == (status, True, True), (code, message)
    assert "Traceback" not in message
    assert get(f"{running.url}/health") == "" and idle(running)
    assert post(running, COMPLETION)[0] == 200


def test_tokens_are_the_same_at_the_end(running, calm):
    assert complete(running, STORM[:2], TOKENS) == calm[:2]
