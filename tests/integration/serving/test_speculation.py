"""N-gram drafts, verified several at once, change no token: rejected latents are written over before they are read."""

import pytest

from tests.integration.checkpoints.test_half_rank import RANKS
from tests.support.processes.engine import ask
from tests.support.serving import engine, greedy, prompts

pytestmark = pytest.mark.serving

BLOCK, TOKENS = 16, 60
ONE, TWO, THREE = prompts(11, 7, 40)
REQUESTS = [ONE * 6, TWO * 20, THREE]  # two repeat themselves
PACKED = {"additional_config": {"palu": {"latent_bits": 4}}}
CASES = {
    "4_bits": ("llama", {}, PACKED, 7),
    "numbers": ("llama", {}, {}, 3),
    "key_norm_4_bits": ("qwen3", {}, PACKED, 5),
    "window_factored": ("mistral", {"sliding_window": 24, "value_path": "factored"}, {}, 7),
}


def ngram(drafts: int) -> dict:
    method = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}
    return {"speculative_config": method | {"num_speculative_tokens": drafts}}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_drafts_change_no_token(case, palu):
    family, changes, settings, drafts = CASES[case]
    model = palu(family, **RANKS, **changes)
    with engine(model, **settings) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    drafted = ask(model, REQUESTS, TOKENS, settings | ngram(drafts))
    assert drafted.attention == [["PALU", "TorchAttention"]]
    assert drafted.tokens == drafted.tokens_again == expected
    assert drafted.accepted_drafts > 0
    assert drafted.cached_again == [len(ids) // BLOCK * BLOCK for ids in REQUESTS]
    verified = [(queries, context) for queries, context in drafted.rows if 1 < queries <= drafts + 1 < context]
    assert max(queries for queries, _ in verified) == drafts + 1
    assert any((context - queries) // BLOCK < (context - 1) // BLOCK for queries, context in verified)


@pytest.mark.slow
def test_kernels_verify_drafts(palu):
    model, requests = palu("llama", **RANKS), [prompts(5, salt=3)[0] * 3, prompts(7, salt=4)[0] * 3]
    with engine(model) as llm:
        expected = greedy(llm, requests, 24)
    drafted = ask(model, requests, 24, ngram(3), PALU_KERNELS="triton")
    assert drafted.attention == [["PALU", "TritonAttention"]]
    assert drafted.tokens == expected and drafted.accepted_drafts > 0
