"""Training rows really bring something back."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks.common.shipped import HELD_OUT, MODEL
from demo.rows import batch, build_corpus, random_facts, recall_row, returning_row


@pytest.fixture(scope="module")
def corpus():
    documents = HELD_OUT.read_text(encoding="utf-8").split("\n\n")
    return build_corpus(AutoTokenizer.from_pretrained(MODEL), documents, seed=0, min_count=5)


@pytest.mark.parametrize("length", [256, 1111])
def test_returning_row_repeats_a_passage(corpus, length):
    row = returning_row(corpus, np.random.default_rng(1), length)
    windows = [tuple(row[i : i + 16]) for i in range(len(row) - 16)]
    assert len(row) == length
    assert len(set(windows)) < len(windows) - 16


def test_recall_row_answers_what_it_stated(corpus):
    rng = np.random.default_rng(2)
    text = corpus.tokenizer.decode(recall_row(corpus, rng, 512))
    stated = {line for line in text.split("\n") if line.startswith("The token of ") and line.endswith(".")}
    assert stated
    assert all(text.count(line.removesuffix(".")) >= 2 for line in list(stated)[:2])


def test_facts_have_distinct_keys(corpus):
    facts = random_facts(corpus, np.random.default_rng(3), 200)
    assert len({fact.key for fact in facts}) == len(facts) > 190


def test_batches_are_reproducible(corpus):
    mix = {"plain": 0.4, "returning": 0.3, "recall": 0.3}
    first, second = (batch(corpus, np.random.default_rng(4), 8, 256, mix) for _ in range(2))
    assert first.shape == (8, 256) and first.dtype == np.int64
    assert (first == second).all()
