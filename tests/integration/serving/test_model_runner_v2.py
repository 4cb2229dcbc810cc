"""vLLM's model runner V2, its default on GPUs, gives the tokens of V1.

On a CPU vLLM has V1; here V2 runs with its own Triton kernels in Triton's interpreter, which vLLM is made to accept.
"""

import pytest

from tests.integration.checkpoints.test_half_rank import RANKS
from tests.support.processes.engine import V2, ask
from tests.support.serving import engine, greedy, prompts

pytestmark = pytest.mark.serving

BLOCK, TOKENS = 16, 24
REQUESTS = prompts(130, 5, 40, 130)
CHUNKED = {"max_num_batched_tokens": 48}
FEW_BLOCKS = {"num_gpu_blocks_override": 24, "max_model_len": 256, "enable_prefix_caching": False}
CASES = {
    "chunked": ("llama", {}, CHUNKED),
    "window_factored": ("mistral", {"sliding_window": 24, "value_path": "factored"}, CHUNKED),
    "4_bits_preempted": ("llama", {}, FEW_BLOCKS | {"additional_config": {"palu": {"latent_bits": 4}}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_runner_v1(case, palu):
    family, changes, options = CASES[case]
    model = palu(family, **RANKS, **changes)
    with engine(model, **options) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    found = ask(model, REQUESTS, TOKENS, options, **{V2: "1"})
    assert found.runner == "vllm.v1.worker.cpu.model_runner"
    assert found.attention == [["PALU", "TorchAttention"]]
    assert found.tokens == found.tokens_again == expected
    if "max_num_batched_tokens" in options:
        assert any(1 < queries < context for queries, context in found.rows), "no prompt was continued"
        assert found.cached_again == [len(ids) // BLOCK * BLOCK for ids in REQUESTS]
    else:
        lengths = {len(ids) for ids in REQUESTS}
        assert any(1 < queries == context not in lengths for queries, context in found.rows), "nothing was preempted"
