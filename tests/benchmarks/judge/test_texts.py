"""Rows by kind of text, and answers that are kept."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.judge.texts import dense_answers, load_tokenizer, rows_of_kinds
from tests.support.tiny_models import build_small, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_small(folder / "model", "llama")
    write_text(folder / "wiki_evaluation.txt")
    (folder / "news_evaluation.txt").write_text("too short")
    return folder


def test_rows_have_the_kind_that_they_are_of(folder):
    tokenizer = load_tokenizer(folder / "model")
    rows = rows_of_kinds(tokenizer, folder, ("wiki", "wiki"), 3, 40)
    assert rows.ids.shape == (6, 40) and rows.kinds == ("wiki",) * 6
    assert len({tuple(row) for row in rows.ids.tolist()[:3]}) == 3


def test_a_text_that_is_too_short(folder):
    with pytest.raises(ValueError, match="news_evaluation.txt has 9 tokens, too few for 1 rows of 40"):
        rows_of_kinds(load_tokenizer(folder / "model"), folder, ("news",), 1, 40)


def test_answers_are_decoded_once(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    cached = tmp_path / "answers.json"
    first = dense_answers(model, [[5, 6, 7]], 4, cached)
    assert len(first[0]) <= 4 and dense_answers(None, [[5, 6, 7]], 4, cached) == first
    assert len(dense_answers(model, [[5, 6, 7], [8, 9]], 4, cached)) == 2
