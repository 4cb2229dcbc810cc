"""Attention of the judge: the model's own where nothing is lost, in every family, and exact where an arm says so."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.judge.arms.arm import Dense, Heads
from benchmarks.judge.arms.kivi import Kivi
from benchmarks.judge.arms.per_token_head import PerTokenHead
from benchmarks.judge.attention import mixed_attention, reading_through
from palu_vllm.format.kv import KV
from tests.support.tiny_models import build_small

TOKENS = torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(0))
FAMILIES = {"llama": {}, "qwen3": {}, "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 16}}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    directory = build_small(tmp_path_factory.mktemp("dense") / "model", request.param, **FAMILIES[request.param])
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits


class AllExact(Kivi):
    """Everything is coded, and every query sees everything as it was."""

    def exact(self, tokens, device):
        return KV(*[torch.ones(tokens, tokens, dtype=torch.bool)] * 2)


@pytest.mark.parametrize("arm", [Dense(), AllExact(2)], ids=["dense", "all exact"])
def test_what_loses_nothing_is_the_model(model, arm):
    expected = logits(model)
    with arm.applied(model) as judged:
        torch.testing.assert_close(logits(judged), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_codes_are_seen_and_the_model_is_as_before(model):
    before = logits(model)
    with reading_through(model, PerTokenHead(4)):
        assert (logits(model) - before).abs().max() > 1e-3
    assert torch.equal(logits(model), before) and not hasattr(model.config, "judged_arm")


def test_heads_are_the_models(model):
    assert Heads.of(model.config) == Heads(2, 4, 16)


def test_queries_see_exact_and_coded_tokens_as_told():
    """Beside a loop over queries."""
    query = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    whole = KV(*torch.randn(2, 1, 2, 6, 8, generator=torch.Generator().manual_seed(2)))
    read = KV(*(x + 1 for x in whole))
    exact = KV(torch.rand(6, 6) < 0.5, torch.rand(6, 6) < 0.5)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    found = mixed_attention(query, whole, read, exact, mask, 0.3)
    for head in range(4):
        for row in range(6):
            key, value = (
                torch.where(side[row, : row + 1, None], own[0, head // 2, : row + 1], other[0, head // 2, : row + 1])
                for side, own, other in zip(exact, whole, read, strict=True)
            )
            expected = (query[0, head, row] @ key.T * 0.3).softmax(-1) @ value
            torch.testing.assert_close(found[0, head, row], expected)
