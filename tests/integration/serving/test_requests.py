"""What one client does leaves the others alone: salted prompts, aborted requests, several answers to one prompt."""

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs

from tests.integration.checkpoints.test_half_rank import RANKS
from tests.support.serving import attention_used, engine, greedy, prompts

pytestmark = pytest.mark.serving

TOKENS = 24
LONG, SHORT = prompts(130, 40)
CHUNK, POOL = 64, 40  # tokens of a step, blocks
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def shared(palu):
    options = {"max_num_batched_tokens": CHUNK, "num_gpu_blocks_override": POOL}
    with engine(palu("llama", **RANKS), attention_backend="palu", **options) as llm:
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        yield llm


@pytest.fixture
def llm(shared):
    shared.reset_prefix_cache()
    return shared


def free_blocks(llm) -> int:
    return llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def test_a_salt_keeps_caches_apart_and_the_same_salt_shares(llm):
    asked = [None, "a", "b", "a", "b", None]
    found = []
    for salt in asked:
        prompt = {"prompt_token_ids": LONG} | ({"cache_salt": salt} if salt else {})
        found += llm.generate([prompt], GREEDY, use_tqdm=False)
    assert [output.num_cached_tokens for output in found] == [0, 0, 0, 128, 128, 128]
    assert len({tuple(output.outputs[0].token_ids) for output in found}) == 1


@pytest.mark.parametrize("steps", [1, 6], ids=["in its prompt", "while decoding"])
def test_an_aborted_request_gives_its_blocks_back_and_changes_nobodys_tokens(llm, steps, batches):
    alone = greedy(llm, [SHORT], TOKENS)[0]
    batches.clear()
    everything_free, running, finished = free_blocks(llm), llm.llm_engine, {}
    running.add_request("kept", {"prompt_token_ids": SHORT}, GREEDY)
    running.add_request("aborted", {"prompt_token_ids": LONG}, GREEDY)
    for _ in range(steps):
        running.step()
    decoding = [row.is_decode for row in batches[-1]]
    assert len(decoding) == 2 and any(decoding) is all(decoding) is (steps > 1)
    held = everything_free - free_blocks(llm)
    running.abort_request(["aborted"])
    assert everything_free - free_blocks(llm) < held
    while running.has_unfinished_requests():
        finished.update({output.request_id: output for output in running.step() if output.finished})
    assert finished.keys() == {"kept"} and finished["kept"].outputs[0].token_ids == alone
    assert free_blocks(llm) == everything_free


def test_blocks_of_an_aborted_request_are_as_good_as_new(llm):
    expected = greedy(llm, [LONG], TOKENS)
    running = llm.llm_engine
    running.add_request("aborted", {"prompt_token_ids": prompts(500, salt=3)[0]}, GREEDY)
    for _ in range(500 // CHUNK + 1):
        running.step()
    assert free_blocks(llm) < len(LONG) // 16
    running.abort_request(["aborted"])
    assert greedy(llm, [LONG], TOKENS) == expected


def test_answers_to_one_prompt_share_its_blocks_and_are_those_of_their_seeds(llm, batches):
    def sampled(seed: int, n: int) -> list[list[int]]:
        params = SamplingParams(n=n, seed=seed, temperature=1.0, max_tokens=TOKENS, ignore_eos=True)
        (output,) = llm.generate([{"prompt_token_ids": SHORT}], params, use_tqdm=False)
        return [answer.token_ids for answer in output.outputs]

    together = sampled(seed=7, n=3)
    # in the batch that computes the prompt, two answers read 32 of its 40 tokens from the blocks of the first
    assert [(row.query_len, row.seq_len) for row in batches[0]] == [(40, 40), (8, 40), (8, 40)]
    alone = []
    for seed in (7, 8, 9):
        llm.reset_prefix_cache()
        alone += sampled(seed, n=1)
    assert together == alone
    assert len({tuple(answer) for answer in together}) == 3


def test_sleep_is_ignored_on_a_cpu(llm):
    awake = greedy(llm, [LONG, SHORT], TOKENS)
    llm.sleep(level=1)
    llm.wake_up()
    assert greedy(llm, [LONG, SHORT], TOKENS) == awake


def test_sleep_mode_is_refused_on_a_cpu(palu):
    """By vLLM and for every model, before the plugin is asked."""
    with pytest.raises(ValueError, match="Sleep mode is not supported on current platform."):
        EngineArgs(str(palu("llama", **RANKS)), enable_sleep_mode=True).create_engine_config()
