"""Served in 16 bits, a checkpoint of float32 errs no more than transformers does in the same dtype."""

from itertools import chain
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm import SamplingParams
from vllm.model_executor.models import utils
from vllm.platforms import current_platform

from tests.support.serving import attention_used, engine, prompts

pytestmark = pytest.mark.serving
REQUESTS = prompts(45, 30, 61)
ANSWER = 12  # tokens that are decoded one by one
MORE = 1.25  # times transformers' error; rounding in another order gave 0.90 and 0.98 of it


def served(llm) -> tuple[list[list[int]], torch.Tensor]:
    """Every prompt with its greedy answer, and the log-probabilities of all tokens but the first of each."""
    wanted = SamplingParams(
        max_tokens=ANSWER, temperature=0.0, ignore_eos=True, logprobs=0, prompt_logprobs=0, detokenize=False
    )
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in REQUESTS], wanted, use_tqdm=False)
    texts = [[*output.prompt_token_ids, *output.outputs[0].token_ids] for output in outputs]
    found = [[*output.prompt_logprobs[1:], *output.outputs[0].logprobs] for output in outputs]
    rows = (zip(text[1:], told, strict=True) for text, told in zip(texts, found, strict=True))
    return texts, torch.tensor([told[token].logprob for token, told in chain.from_iterable(rows)])


@torch.no_grad()
def transformers(directory, texts: list[list[int]], dtype: str) -> torch.Tensor:
    """The same log-probabilities, by transformers."""
    model, found = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)), []
    for text in map(torch.tensor, texts):
        logits = model(text[None]).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(1, text[1:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_errors_are_those_of_the_dtype(palu, dtype, monkeypatch):
    """Errors are root mean squares against transformers in float32, over prompts and decoded tokens."""
    if getattr(torch, dtype) not in current_platform.supported_dtypes:
        pytest.skip(f"vLLM says that this machine's processor has no instructions for {dtype}")
    directory = palu("llama", (32, 24), (40, 16))
    monkeypatch.setattr(utils.logger, "warning", warned := Mock())
    with engine(directory, dtype=dtype) as llm:
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        texts, found = served(llm)
    exact = transformers(directory, texts, "float32")
    error, expected = ((each - exact).square().mean().sqrt() for each in (found, transformers(directory, texts, dtype)))
    assert torch.finfo(getattr(torch, dtype)).eps < error < MORE * expected
    assert not warned.mock_calls, "vLLM warns of every tensor that it rounds itself"
