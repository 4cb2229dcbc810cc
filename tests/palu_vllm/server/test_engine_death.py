"""Who is to blame for the end of a server; the real thing: ``tests/integration/faults/test_processes.py``."""

import pytest

from palu_vllm.server.engine_death import FAILED, fail_after_engine_death


class Client:
    """An engine's client as vLLM's: after a shutdown it calls its engine dead, whoever ended it."""

    def __init__(self) -> None:
        self.errored, self.timeouts = False, []

    def shutdown(self, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)
        self.errored = True


@pytest.fixture
def client() -> Client:
    client = Client()
    fail_after_engine_death(client)
    return client


def test_a_shutdown_that_was_asked_for_is_no_failure(client):
    client.shutdown(timeout=60)
    client.shutdown(timeout=0)
    assert client.timeouts == [60, 0]


def test_a_shutdown_after_the_engine_died_fails_once_everything_is_shut_down(client):
    client.errored = True
    with pytest.raises(SystemExit) as ended:
        client.shutdown(timeout=60)
    assert ended.value.code == FAILED != 0
    assert client.timeouts == [60]
