"""Divergence: zero of itself, right beside a loop, and parts that are those of their tokens."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.judge.arms.per_token_head import PerTokenHead
from benchmarks.judge.divergence import PerToken, Reference, log_probabilities, summaries, summary
from tests.support.tiny_models import build_small

ROWS = torch.randint(3, 97, (3, 100), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    directory = build_small(tmp_path_factory.mktemp("dense") / "model", "llama")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_the_dense_model_does_not_diverge_from_itself(dense):
    found = summary(Reference(dense, ROWS).per_token(dense))
    assert found["kl_999"] < 1e-5 and found["top1"] == 1


def test_numbers_are_those_of_a_loop(dense):
    reference = Reference(dense, ROWS)
    with PerTokenHead(4).applied(dense) as model:
        found = reference.per_token(model)
        arm = log_probabilities(model, ROWS[1])
    own = log_probabilities(dense, ROWS[1])
    for position in (0, 50, 98):
        kl = torch.nn.functional.kl_div(arm[position], own[position], log_target=True, reduction="sum")
        assert found.kl[1, position].item() == pytest.approx(kl.item(), rel=5e-3)
        assert found.same_top[1, position] == (arm[position].argmax() == own[position].argmax())
        assert found.loss[1, position].item() == pytest.approx(-arm[position, ROWS[1, position + 1]].item())


def test_kinds_and_positions_are_parts_of_the_whole():
    kl = torch.arange(4 * 99).view(4, 99).float()
    found = summaries(PerToken(kl, kl > 50, kl / 100), ("wiki", "wiki", "news", "news"))
    assert found["by_kind"]["news"]["kl"] == pytest.approx(kl[2:].mean().item(), rel=1e-4)
    assert found["by_position"]["first_64"]["kl"] == pytest.approx(kl[:, :64].mean().item(), rel=1e-4)
    assert found["by_position"]["to_512"]["kl"] == pytest.approx(kl[:, 64:].mean().item(), rel=1e-4)
    assert "beyond" not in found["by_position"]
    assert found["perplexity"] == pytest.approx(math.exp((kl / 100).mean().item()), rel=1e-4)
    assert found["kl"] < found["kl_99"] < found["kl_999"] <= kl.max()
