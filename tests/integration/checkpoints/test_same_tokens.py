"""The cache is written before it is read, so it does not matter how a request was scheduled: the tokens are equal."""

import pytest
from vllm import SamplingParams

from tests.support.serving import attention_used, engine, greedy, outputs, prompts

pytestmark = pytest.mark.serving

RANKS = {"rank_k": (32, 24), "rank_v": (40, 16)}  # different in every layer
REQUESTS = prompts(130, 5, 40, 130)
TOKENS = 24


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", **RANKS)


@pytest.fixture(scope="module")
def cold(model):
    """Each request alone, its prompt in one piece, no prefix cache. The flag is left out."""
    with engine(model, enable_prefix_caching=False) as llm:
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        return [greedy(llm, [request], TOKENS)[0] for request in REQUESTS]


class TestOneCachingEngine:
    @pytest.fixture(scope="class")
    def caching(self, model, cold):
        with engine(model, attention_backend="palu", max_num_batched_tokens=256) as llm:
            assert attention_used(llm) == {("PALU", "TorchAttention")}
            yield llm

    def test_prefix_cache_hit(self, caching, cold):
        assert greedy(caching, REQUESTS, TOKENS) == cold
        again = [outputs(caching, [request], TOKENS)[0] for request in REQUESTS]
        assert [output.num_cached_tokens for output in again] == [len(request) // 16 * 16 for request in REQUESTS]
        assert [output.outputs[0].token_ids for output in again] == cold

    def test_batched_with_strangers(self, caching, cold, batches):
        caching.reset_prefix_cache()
        strangers = prompts(7, 90, 33, 61, salt=5)
        mixed = [request for pair in zip(strangers, REQUESTS, strict=True) for request in pair]
        assert greedy(caching, mixed, TOKENS)[1::2] == cold
        assert max(len(batch) for batch in batches) == len(mixed)

    def test_decode_with_a_long_first_chunk_and_a_prefix_continuation(self, caching, cold, batches):
        """vLLM #46460: where the longest query is the longest sequence, a cached prefix must still be read."""
        long, short, _, continued = REQUESTS
        caching.reset_prefix_cache()
        greedy(caching, [continued], 1)
        llm, finished = caching.llm_engine, {}
        params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)

        def step():
            finished.update({output.request_id: output for output in llm.step() if output.finished})

        llm.add_request("decoding", {"prompt_token_ids": short}, params)
        step()
        batches.clear()
        llm.add_request("continued", {"prompt_token_ids": continued}, params)
        llm.add_request("long", {"prompt_token_ids": long + long}, params)
        while llm.has_unfinished_requests():
            step()
        decode, continuation, chunk = sorted(batches[0], key=lambda row: row.query_len)
        assert decode.is_decode and continuation.is_continuation and chunk.is_first_chunk
        assert chunk.query_len == max(row.seq_len for row in batches[0])
        assert finished["decoding"].outputs[0].token_ids == cold[1]
        assert finished["continued"].outputs[0].token_ids == cold[3]


def test_chunked_prefill(model, cold, batches):
    with engine(model, attention_backend="palu", max_num_batched_tokens=48) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == cold
    assert any(row.is_continuation for batch in batches for row in batch)
    assert max(row.query_len for batch in batches for row in batch) <= 48


def test_preempted_and_resumed(model, cold, batches):
    few = {"num_gpu_blocks_override": 24, "max_model_len": 256, "enable_prefix_caching": False}
    with engine(model, attention_backend="palu", **few) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == cold
    lengths = {len(request) for request in REQUESTS}
    resumed = [row for batch in batches for row in batch if row.is_first_chunk and row.seq_len not in lengths]
    assert resumed, "no prompt was computed again together with its first tokens, so nothing was preempted"
