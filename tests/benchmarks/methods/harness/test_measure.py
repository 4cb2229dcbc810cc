"""The judge, on methods and on a palu checkpoint."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.harness.dense import Dense
from benchmarks.methods.harness.measure import Judge
from benchmarks.methods.projected.palu import PaluCache
from tests.benchmarks.methods.conftest import SMALL
from tests.support.plain_svd import build_palu
from tests.support.tiny_models import build_dense

PROMPT, NEW = 40, 12


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (2, PROMPT + NEW), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def judge(dense_model, rows):
    return Judge(dense_model, rows, PROMPT)


def test_dense_diverges_from_nothing(judge, dense_model, rows):
    score = judge.score_method(dense_model, Dense(), torch.float64)
    assert abs(score["kl"]) < 1e-9
    logits = dense_model(rows).logits[:, PROMPT:-1].float().log_softmax(-1)
    expected = -logits.gather(-1, rows[:, PROMPT + 1 :, None]).mean()
    assert score["perplexity"] == pytest.approx(expected.exp().item(), rel=1e-5)
    numbers = 2 * 3 * 2 * 16  # keys and values, layers, heads
    assert score["bytes_at_prompt_end"] == PROMPT * numbers * 8
    assert score["bytes_after"] == (PROMPT + NEW - 1) * numbers * 8
    assert dense_model.config._attn_implementation == "sdpa"


def test_fewer_bits_diverge_more_and_take_less(judge, dense_model):
    scores = [
        judge.score_method(dense_model, KIVI(k_bits=b, v_bits=b, group_size=8, residual_length=8), torch.float16)
        for b in (2, 4, 8)
    ]
    assert scores[0]["kl"] > scores[1]["kl"] > scores[2]["kl"] > 0
    assert scores[0]["bytes_after"] < scores[1]["bytes_after"] < scores[2]["bytes_after"]


def test_palu_counts_its_latents_the_same_way(judge, tmp_path, rows):
    dense = build_dense(tmp_path / "dense", **SMALL)
    palu = build_palu(dense, tmp_path / "palu", rank_k=16, rank_v=8, group_size=2)
    model = AutoModelForCausalLM.from_pretrained(palu, dtype=torch.float32).eval()
    score = judge.score(model, lambda: PaluCache(torch.float16))
    assert score["bytes_at_prompt_end"] == 3 * PROMPT * (16 + 8) * 2
    assert score["bytes_after"] == 3 * (PROMPT + NEW - 1) * (16 + 8) * 2
    full = build_palu(dense, tmp_path / "full", rank_k=32, rank_v=32, group_size=2)
    exact = AutoModelForCausalLM.from_pretrained(full, dtype=torch.float32).eval()
    assert abs(judge.score(exact, lambda: PaluCache(torch.float32))["kl"]) < 1e-5 < score["kl"]


def test_rows_that_are_too_short_are_refused(dense_model, rows):
    with pytest.raises(ValueError, match="no prompt of"):
        Judge(dense_model, rows, PROMPT + NEW - 1)
