"""Two stages and two replicas of a palu model, in processes of their own, decode the tokens of one process.

Tensor parallelism is in ``test_server.py``.
"""

import openai
import pytest
import vllm
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.startup.check import StartError
from tests.support.serving import engine, greedy, prompts, server

pytestmark = pytest.mark.serving

TOKENS = 12
REQUESTS = prompts(6, 45, 20, 33)
GREEDY = {"temperature": 0.0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True, "return_token_ids": True}}


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", (32, 24), (40, 16))


@pytest.fixture(scope="module")
def expected(model):
    with engine(model, attention_backend="palu") as llm:
        return greedy(llm, REQUESTS, TOKENS)


@pytest.mark.slow
def test_two_stages(model, expected):
    """Each has one of the two layers, which differ in their ranks."""
    with engine(model, attention_backend="palu", pipeline_parallel_size=2, enforce_eager=False) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected


@pytest.mark.slow
def test_two_replicas(model, expected, tmp_path):
    arguments = ("--attention-backend=palu", "--dtype=float32", "--max-model-len=512", "--enforce-eager")
    replicas = ("--data-parallel-size=2", "--api-server-count=1")
    with server(model, tmp_path / "log", *arguments, *replicas) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        answers = [client.completions.create(model=str(model), prompt=ids, **GREEDY) for ids in REQUESTS]
    assert [answer.choices[0].token_ids for answer in answers] == expected
    assert {f"EngineCore_DP{replica}" in running.log.read_text() for replica in (0, 1)} == {True}


@pytest.mark.parametrize("options", [{"pipeline_parallel_size": 2}, {"data_parallel_size": 2, "enforce_eager": True}])
def test_start_is_not_refused(model, options):
    config = EngineArgs(str(model), dtype="float32", attention_backend="palu", **options).create_engine_config()
    parallel = config.parallel_config
    assert {parallel.pipeline_parallel_size, parallel.data_parallel_size} == {1, 2}


def test_stages_without_compilation_are_refused(model):
    with pytest.raises(StartError, match="leave --enforce-eager out"):
        options = {"pipeline_parallel_size": 2, "enforce_eager": True}
        EngineArgs(str(model), dtype="float32", **options).create_engine_config()


@pytest.mark.slow
def test_dense_stages_without_compilation_fail_likewise(dense):
    """vLLM on a CPU makes the buffers between stages while it warms up for compilation; eager, the first request ends
    the engine. When this fails, the refusal above can go.
    """
    options = {"pipeline_parallel_size": 2, "block_size": 32}
    with (
        engine(dense("llama"), **options) as llm,
        pytest.raises((KeyError, AssertionError, RuntimeError, vllm.v1.engine.exceptions.EngineDeadError)),
    ):
        greedy(llm, REQUESTS[:1], TOKENS)
