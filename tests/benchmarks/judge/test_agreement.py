"""Agreement by one pass is that of decoding, and needles are where they are said to be."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.judge.agreement import agreed, agreement, mastered, needles, retrieval
from benchmarks.judge.arms.per_token_head import PerTokenHead
from tests.support.tiny_models import build_small

PROMPTS = [torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
           for length in (9, 14, 23, 31)]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return build_small(tmp_path_factory.mktemp("dense") / "model", "llama")


@pytest.fixture(scope="module")
def dense(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def decoded(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, the whole text anew for each."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_agreement_is_that_of_decoding(dense):
    answers = [decoded(dense, prompt, 12) for prompt in PROMPTS]
    with PerTokenHead(4).applied(dense) as model:
        others = [decoded(model, prompt, 12) for prompt in PROMPTS]
        found = [agreed(model, *pair) for pair in zip(PROMPTS, answers, strict=True)]
        told = agreement(model, PROMPTS, answers)
    common = [next((i for i in range(12) if a[i] != b[i]), 12) for a, b in zip(answers, others, strict=True)]
    assert found == common and min(common) < 12, "an arm that never differs proves nothing"
    assert told["agreed_tokens"] == round(sum(common) / 4, 2) and told["answer_tokens"] == 12
    assert agreement(dense, PROMPTS, answers)["agreed_answers"] == 1


def test_needles_lie_at_their_depths_and_are_asked_for(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.encode("the river and the hill " * 200, add_special_tokens=False)
    found = needles(tokenizer, text, [400, 600], [0.1, 0.9])
    assert [(each.tokens, each.depth) for each in found] == [(400, 0.1), (400, 0.9), (600, 0.1), (600, 0.9)]
    for each in found:
        assert len(each.prompt) + len(each.answer) == each.tokens
        shown, value = tokenizer.decode(each.prompt), tokenizer.decode(each.answer).strip()
        assert shown.count(value) == 1 and shown.index(value) / len(shown) == pytest.approx(each.depth, abs=0.35)


def test_only_what_the_dense_model_finds_is_asked(dense, directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.encode("the river and the hill " * 200, add_special_tokens=False)
    hidden = needles(tokenizer, text, [300], [0.5])
    assert mastered(dense, hidden) == []
    assert retrieval(dense, []) == {"needles": None, "needles_asked": 0, "needles_by_length": {}}
    known = [type(each)(each.prompt, decoded(dense, each.prompt, 3), each.tokens, each.depth) for each in hidden]
    assert retrieval(dense, mastered(dense, known))["needles_by_length"] == {"300": 1.0}
