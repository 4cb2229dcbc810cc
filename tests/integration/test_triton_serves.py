"""The Triton kernels serve the same tokens as the torch path, in Triton's interpreter where there is no GPU."""

import pytest

from tests.serving import attention_used, engine, greedy, prompts

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_kernels_serve_the_same_tokens(family, palu, monkeypatch):
    directory, requests = palu(family, (32, 24), (40, 16)), prompts(5, 37)
    with engine(directory, attention_backend="palu") as llm:
        expected = greedy(llm, requests, 6)
    monkeypatch.setenv("PALU_KERNELS", "triton")
    with engine(directory, attention_backend="palu", max_num_batched_tokens=32) as llm:
        assert greedy(llm, requests, 6) == expected
        assert attention_used(llm) == {("PALU", "TritonAttention")}
