"""Questions to the shipped model, which can find what it is asked for."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.common.shipped import HELD_OUT, MODEL
from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.harness.dense import Dense
from benchmarks.methods.harness.prompts import method_arm
from benchmarks.methods.harness.retrieval import Quiz, needles, recall, ruler
from benchmarks.methods.kept.snapkv import SnapKV
from benchmarks.methods.kept.streaming_llm import StreamingLLM

LENGTH = 256


@pytest.fixture(scope="module")
def tokens():
    return Tokens(AutoTokenizer.from_pretrained(MODEL))


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def asked(tokens, tmp_path_factory):
    file = tmp_path_factory.mktemp("hay") / "hay.txt"
    file.write_text(HELD_OUT.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return {
        "needle": needles(tokens, str(file), "demo", (LENGTH,), (0, 50, 100), 1, 0),
        "ruler": ruler(tokens, str(file), "niah_multikey_1", "demo", LENGTH, 3, 0),
        "recall": recall(tokens, str(file), LENGTH, 1, 0),
    }


@pytest.fixture(scope="module")
def quizzes(shipped, tokens, asked):
    return {name: Quiz(shipped, tokens, questions, torch.float16) for name, questions in asked.items()}


def test_what_is_compressed_has_the_length_and_the_facts_but_no_answer_after_the_question(asked, tokens):
    for name, questions in asked.items():
        for passage in questions.passages:
            assert len(passage.ids) == LENGTH
            text = tokens.decode(list(passage.ids))
            for question in passage.questions:
                whole = text + tokens.decode(list(question.ids))
                assert whole.endswith(" is") and all(answer.rstrip(".") in text for answer in question.answers)
                assert (name == "recall") == (len(question.ids) > 1)
    assert len(asked["recall"].passages[0].questions) == 4
    assert [passage.subset["depth"] for passage in asked["needle"].passages] == [0, 50, 100]


@pytest.mark.parametrize("name", ["needle", "ruler", "recall"])
def test_the_dense_cache_and_many_bits_find_what_a_short_window_loses(name, shipped, quizzes):
    def share(method):
        found = quizzes[name].found(method_arm(shipped, method, torch.float16))
        return sum(found) / len(found)

    assert share(Dense()) == share(KIVI(k_bits=8, v_bits=8, residual_length=32)) >= 0.75
    assert share(StreamingLLM(max_capacity_prompts=24)) < share(Dense())


def test_who_sees_the_question_keeps_what_it_asks_for(shipped, quizzes):
    arm = method_arm(shipped, SnapKV(max_capacity_prompts=96), torch.float16)
    assert sum(quizzes["needle"].found(arm)) > 2 * sum(quizzes["recall"].found(arm)) / 4 * 3


def test_a_batch_answers_as_each_prompt_alone(shipped, tokens, asked, quizzes):
    arm = method_arm(shipped, SnapKV(max_capacity_prompts=48), torch.float16)
    alone = [
        score
        for passage in asked["ruler"].passages
        for score in Quiz(shipped, tokens, replace(asked["ruler"], passages=(passage,)), torch.float16).found(arm)
    ]
    assert quizzes["ruler"].found(arm) == alone


def test_the_question_is_answered_as_generate_does(shipped, tokens, asked):
    """transformers' own greedy decoding from the whole prompt."""
    for passage in asked["needle"].passages:
        ids = torch.tensor([[*passage.ids, *passage.questions[0].ids]])
        made = shipped.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert passage.questions[0].answers[0] in tokens.decode(made[0, ids.shape[1] :].tolist())


def test_prompts_too_short_for_the_facts_are_refused(tokens):
    with pytest.raises(ValueError, match="facts take"):
        recall(tokens, str(HELD_OUT), 40, 1, 0)
