"""Ranks that LoRC's and MatryoshkaKV's rules chose, served: transformers' tokens, and the bytes that are reported."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress import compress
from tests.integration.checkpoints.test_half_rank import POOL
from tests.integration.checkpoints.test_packed import capacity
from tests.support.serving import attention_used, engine, greedy, prompts
from tests.support.tiny_models import build_even, write_text

pytestmark = pytest.mark.serving

TOKENS, BLOCK = 12, 16
REQUESTS = prompts(70, 6, 45)
QUICK = {"calib_samples": 2, "calib_seqlen": 40, "objective": "svd"}


def in_transformers(directory) -> list[list[int]]:
    """Greedy tokens in float32, each request alone."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    found = []
    for ids in REQUESTS:
        told = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        found.append(told[0, len(ids) :].tolist())
    return found


@pytest.mark.parametrize("search", ["lorc", "matryoshka"])
def test_tokens_are_those_of_transformers_and_capacity_follows_the_ranks(search, tmp_path):
    source, data, out = build_even(tmp_path / "model", num_hidden_layers=4), tmp_path / "data.txt", tmp_path / "out"
    report = compress(source, out, search=search, rank_ratio=0.5, calib_data=str(write_text(data)), **QUICK)
    ranks = report["rank_k"] + report["rank_v"]
    assert len(set(ranks)) > 1 and 2 * report["bytes_per_token"] == report["dense_bytes_per_token"]
    with engine(out, max_model_len=128, num_gpu_blocks_override=None) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == in_transformers(out)
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        assert capacity(llm) == POOL // (BLOCK * report["bytes_per_token"]) * BLOCK
