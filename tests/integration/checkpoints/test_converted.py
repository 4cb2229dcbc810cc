"""A dump of the reference implementation, converted: vLLM serves what the reference's own forward pass computes."""

import pytest
import torch
from vllm import SamplingParams

from offline_compress.convert.pipeline import ConvertOptions, convert
from tests.support.reference_dumps import reference_model, write_dump
from tests.support.serving import attention_used, engine, greedy, prompts

pytestmark = pytest.mark.serving

RANKS = {"k_proj": [[24, 40], [64, 16]], "v_proj": [[40, 33], [16, 64]]}  # unequal, and as wide as the group
TOKENS = 12


def test_tokens_and_logits_are_the_references(dense, tmp_path):
    model, requests = reference_model(dense("llama"), RANKS), prompts(6, 45)
    convert(ConvertOptions(write_dump(dense("llama"), tmp_path / "dump", RANKS), tmp_path / "out"))
    expected = [
        model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)[0, len(ids) :]
        for ids in requests
    ]
    with torch.no_grad():
        scores = model(torch.tensor([requests[1]])).logits[0].log_softmax(-1)
    with engine(tmp_path / "out", attention_backend="palu") as llm:
        assert greedy(llm, requests, TOKENS) == [tokens.tolist() for tokens in expected]
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        told = llm.generate([{"prompt_token_ids": requests[1]}], params, use_tqdm=False)[0].prompt_logprobs
    for place, token in enumerate(requests[1][1:], start=1):
        assert told[place][token].logprob == pytest.approx(scores[place - 1, token].item(), abs=1e-3)
