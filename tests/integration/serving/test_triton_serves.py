"""The Triton kernels serve the same tokens as the torch path, in Triton's interpreter where there is no GPU."""

import pytest

from tests.support.plain_svd import with_tiers
from tests.support.serving import attention_used, engine, greedy, prompts
from tests.support.speed import fast_interpreter

pytestmark = pytest.mark.serving
fast_interpreter.install()

NUMBERS = [(1.0, 16)]
CASES = {
    "llama": ("llama", "fused", NUMBERS, NUMBERS),
    "llama_factored": ("llama", "factored", NUMBERS, NUMBERS),
    "qwen2": ("qwen2", "fused", NUMBERS, NUMBERS),
    "qwen3": ("qwen3", "fused", NUMBERS, NUMBERS),
    "4_bits": ("llama", "fused", [(1.0, 4)], [(1.0, 4)]),
    "tiers_of_8_and_3_bits": ("qwen2", "fused", [(0.5, 8), (0.5, 3)], [(0.5, 4), (0.5, 2)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_serve_the_same_tokens(case, palu, tmp_path, monkeypatch):
    family, value_path, *tiers = CASES[case]
    written = palu(family, (32, 24), (40, 16), value_path=value_path)
    directory, requests = with_tiers(written, tmp_path / "model", *tiers), prompts(3, 21)
    with engine(directory, attention_backend="palu") as llm:
        expected = greedy(llm, requests, 4)
    monkeypatch.setenv("PALU_KERNELS", "triton")
    with engine(directory, attention_backend="palu", max_num_batched_tokens=16) as llm:
        assert greedy(llm, requests, 4) == expected
        assert attention_used(llm) == {("PALU", "TritonAttention")}
