"""Latents behind a sliding window: the same tokens however scheduled, and no blocks for what nobody sees any more."""

import pytest
from vllm import SamplingParams

from tests.integration.checkpoints.test_half_rank import RANKS
from tests.integration.serving.test_requests import free_blocks
from tests.support.serving import attention_used, engine, greedy, outputs, prompts

pytestmark = pytest.mark.serving

WINDOW, BLOCK, CHUNK, TOKENS = 24, 16, 48, 24
REQUESTS = prompts(130, 5, 40)


@pytest.fixture(scope="module")
def model(palu):
    return palu("mistral", **RANKS, sliding_window=WINDOW)


@pytest.fixture(scope="module")
def cold(model):
    with engine(model, enable_prefix_caching=False) as llm:
        return [greedy(llm, [request], TOKENS)[0] for request in REQUESTS]


@pytest.fixture(scope="module")
def llm(model, cold):
    with engine(model, max_num_batched_tokens=CHUNK) as llm:
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        yield llm


def test_chunked_and_cached_tokens_are_those_of_a_cold_run(llm, cold, batches):
    assert greedy(llm, REQUESTS, TOKENS) == cold
    assert any(row.is_continuation for batch in batches for row in batch)
    again = outputs(llm, REQUESTS, TOKENS)
    assert [list(output.outputs[0].token_ids) for output in again] == cold
    assert [output.num_cached_tokens for output in again] == [len(ids) // BLOCK * BLOCK for ids in REQUESTS]


def test_blocks_behind_the_window_come_back(llm):
    everything_free, running, held = free_blocks(llm), llm.llm_engine, []
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    running.add_request("long", {"prompt_token_ids": prompts(300, salt=2)[0]}, params)
    while running.has_unfinished_requests():
        running.step()
        held.append(everything_free - free_blocks(llm))
    assert max(held) <= (WINDOW + CHUNK) // BLOCK + 1
    assert max(held[300 // CHUNK + 2 :]) <= WINDOW // BLOCK + 2
    assert held[-1] == 0
