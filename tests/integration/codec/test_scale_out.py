"""Two stages and two replicas of a model with a codec decode the tokens of one process."""

import json

import openai
import pytest

from tests.integration.codec.families.test_families import options
from tests.integration.serving.test_parallel import GREEDY, REQUESTS, TOKENS
from tests.support.codecs.models import write_codec
from tests.support.serving import engine, greedy, server

pytestmark = [pytest.mark.serving, pytest.mark.slow]


@pytest.fixture(scope="module")
def codec(dense, tmp_path_factory):
    return write_codec(tmp_path_factory.mktemp("codec"), dense())


@pytest.fixture(scope="module")
def expected(dense, codec):
    with engine(dense(), **options(codec)) as llm:
        return greedy(llm, REQUESTS, TOKENS)


def test_two_stages(dense, codec, expected):
    """Each has one of the two layers, compiled."""
    with engine(dense(), **options(codec), pipeline_parallel_size=2, enforce_eager=False) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected


def test_two_replicas_behind_two_api_servers(dense, codec, expected, tmp_path):
    settings = json.dumps(options(codec)["additional_config"])
    arguments = ("--attention-backend=palu", f"--additional-config={settings}", "--dtype=float32")
    replicas = ("--max-model-len=512", "--enforce-eager", "--data-parallel-size=2", "--api-server-count=2")
    with server(dense(), tmp_path / "log", *arguments, *replicas) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        answers = [client.completions.create(model=str(dense()), prompt=ids, **GREEDY) for ids in REQUESTS]
    assert [answer.choices[0].token_ids for answer in answers] == expected
    assert {f"EngineCore_DP{replica}" in running.log.read_text() for replica in (0, 1)} == {True}
