"""Two servers on one machine and what befalls them: disk, log, engine, end. The tests go on with what is left.

Each fault strikes one server; the other, and what the struck one still has to do, shows that nothing else was harmed.
"""

import shutil
import signal
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from palu_vllm.format.checkpoint import SINGLE
from tests.support.live_metrics import alive, descendants, engine_process, eventually, get, metrics
from tests.support.processes.stalls import PATIENCE
from tests.support.serving import Server, prompts, server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

ARGUMENTS = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager",
             "--shutdown-timeout", f"{PATIENCE:.0f}", "--served-model-name=served", "--block-size=16")  # fmt: skip
REQUEST = prompts(40)[0]


@pytest.fixture(scope="module")
def checkpoints(palu, tmp_path_factory) -> list[Path]:
    """Two models with other weights and ranks, copied, for they will be damaged."""
    base = tmp_path_factory.mktemp("checkpoints")
    models = palu("llama", (32, 24), (40, 16)), palu("llama", (40, 8), (16, 32), value_path="factored")
    return [Path(shutil.copytree(model, base / name)) for name, model in zip(("first", "second"), models, strict=True)]


@pytest.fixture(scope="module")
def running(checkpoints, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    with (
        server(checkpoints[0], logs / "first", *ARGUMENTS, VLLM_PLUGINS="palu") as first,
        server(checkpoints[1], logs / "second", *ARGUMENTS, VLLM_PLUGINS="palu") as second,
    ):
        yield first, second


def client(running: Server, timeout: float = PATIENCE) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=timeout)


def answer(running: Server) -> list[int]:
    options = {"temperature": 0.0, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
    answer = client(running).completions.create(model="served", prompt=REQUEST, max_tokens=24, **options)
    return answer.choices[0].token_ids


@pytest.fixture(scope="module")
def tokens(running) -> list[list[int]]:
    """What each server answers before anything happens."""
    return [answer(each) for each in running]


def test_neighbours_have_their_own_tokens_and_metrics(running, tokens):
    first, second = running
    assert tokens[0] != tokens[1] and min(len(set(each)) for each in tokens) > 4
    before = [metrics(each)["vllm:generation_tokens_total"] for each in running]
    assert [answer(first) for _ in range(3)] == [tokens[0]] * 3
    rise = [metrics(each)["vllm:generation_tokens_total"] - old for each, old in zip(running, before, strict=True)]
    assert rise == [3 * 24, 0]
    sizes = [metrics(each)["palu_cache_bytes_per_token"] for each in running]
    assert sizes[0] == 4 * 2 * (32 + 24 + 40 + 16) and sizes[1] == 4 * 2 * (40 + 8 + 16 + 32)
    assert {pid.pid for pid in descendants(first)}.isdisjoint(pid.pid for pid in descendants(second))


def test_a_checkpoint_that_changes_on_disk_while_it_is_served(running, checkpoints, tokens):
    """Weights replaced by another model's with a rename, configuration deleted: neither is read again."""
    shutil.copy(checkpoints[1] / SINGLE, checkpoints[0] / "new")
    (checkpoints[0] / "new").rename(checkpoints[0] / SINGLE)
    (checkpoints[0] / "config.json").unlink()
    assert [answer(each) for each in running] == tokens
    assert get(f"{running[0].url}/health") == "" and "palu_info" in metrics(running[0])


def test_a_disk_that_is_full_for_the_log(running, tokens):
    """No process of the first server may make a file longer than its log is now: writes fail as on a full disk."""
    first = running[0]
    size = first.log.stat().st_size
    for process in (psutil.Process(first.process.pid), *descendants(first)):
        process.rlimit(psutil.RLIMIT_FSIZE, (size, size))
    assert [answer(first) for _ in range(3)] == [tokens[0]] * 3
    assert get(f"{first.url}/v1/palu/info")
    assert first.log.stat().st_size == size, "something was logged, so the disk was not full"
    assert [answer(each) for each in running] == tokens


def test_a_killed_engine_ends_its_server_with_a_failure(running, tokens):
    first, second = running
    family = descendants(first)
    engine_process(first).kill()

    def unhealthy() -> bool:
        try:
            return bool(get(f"{first.url}/health"))
        except (urllib.error.URLError, ConnectionError):
            return True

    assert eventually(unhealthy)
    assert first.process.wait(PATIENCE) == 1
    assert eventually(lambda: not alive(family)), alive(family)
    assert answer(second) == tokens[1]


def stream(running: Server, number: int, started: set[int]) -> tuple[int, str]:
    """Tokens and reason of the end of a request for 900 tokens; adds its `number` to `started` with its first part."""
    options = {"temperature": 0.0, "stream": True, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
    count, reason = 0, ""
    for part in client(running).completions.create(model="served", prompt=REQUEST, max_tokens=900, **options):
        count += len(part.choices[0].token_ids or ())
        reason = part.choices[0].finish_reason or reason
        started.add(number)
    return count, reason


def test_sigterm_drains(running):
    """Streams go on to their end; a request that comes later gets no token; the exit code is 0."""
    second, started = running[1], set()
    family = descendants(second)
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(stream, second, number, started) for number in range(4)]
        assert eventually(lambda: len(started) == 4), "a stream that had not begun would be refused, not drained"
        second.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: "start mode=drain" in second.log.read_text())
        assert not all(each.done() for each in streams), "nothing was left to drain"
        assert refused(second)
        assert [each.result() for each in streams] == [(900, "length")] * 4
    assert second.process.wait(PATIENCE) == 0
    assert eventually(lambda: not alive(family)), alive(family)


def refused(running: Server) -> bool:
    """Whether a new request ends without a token: aborted, refused, or without an answer in a few seconds."""
    try:
        late = client(running, timeout=5).completions.create(model="served", prompt=REQUEST, max_tokens=4)
    except (openai.APIConnectionError, openai.APIStatusError):
        return True
    return late.choices[0].finish_reason == "abort" and not late.choices[0].text
