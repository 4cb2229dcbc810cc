"""Identities of LongBench's metrics."""

import string
from difflib import SequenceMatcher
from importlib.resources import files

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.tasks.longbench import LONGBENCH_TASKS, METRICS, PUBLISHED, score, truncate_middle
from benchmarks.accuracy.tasks.longbench_metrics import (
    classification,
    code_similarity,
    count,
    qa_f1,
    retrieval,
    rouge_l,
    words_of,
)

WORD = st.text(string.ascii_lowercase, min_size=3, max_size=6).filter(lambda word: word not in ("the",))
WORDS = st.lists(WORD, min_size=1, max_size=12)


def longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook recurrence."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS)
def test_equal_strings_score_one(words):
    text = " ".join(words)
    assert qa_f1(text, text) == rouge_l(text, text) == code_similarity(text, text) == 1


@given(WORDS, WORDS)
def test_similarities_are_symmetric_and_bounded(left, right):
    a, b = " ".join(left), " ".join(right)
    for metric in (qa_f1, rouge_l):
        assert metric(a, b) == pytest.approx(metric(b, a))
        assert 0 <= metric(a, b) <= 1


@given(WORDS, WORDS, st.randoms())
def test_f1_knows_no_order(left, right, rng):
    mixed = rng.sample(left, len(left))
    assert qa_f1(" ".join(mixed), " ".join(right)) == qa_f1(" ".join(left), " ".join(right))


@given(WORDS)
def test_f1_knows_neither_case_nor_articles_nor_punctuation(words):
    plain = " ".join(words)
    assert qa_f1(f"The {plain.upper()}, a!", plain) == 1
    assert words_of(f"an {plain}.") == words


@given(WORDS, WORDS)
def test_rouge_l_is_the_longest_common_subsequence(left, right):
    common = longest_common(left, right)
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(2 * common / (len(left) + len(right)))


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(0, 40))
def test_counting_and_retrieval_are_shares_of_numbers(numbers, right):
    text = " and ".join(map(str, numbers))
    share = numbers.count(right) / len(numbers) if numbers else 0
    assert count(text, str(right)) == retrieval(text, f"Paragraph {right}") == share


def test_retrieval_says_what_is_wrong_with_an_answer():
    with pytest.raises(ValueError, match="Paragraph N"):
        retrieval("3", "the third")


@pytest.mark.parametrize(
    ("response", "expected"),
    [("Location", 1), ("Other location", 1), ("Location or Person", 0.5), ("Person", 0), ("", 0)],
)
def test_classification_shares_among_named_classes(response, expected):
    classes = ["Person", "location", "Location", "Number"]
    assert classification(response.replace("location", "Location"), "Location", classes) == expected


def test_a_class_within_the_right_one_does_not_count():
    assert classification("Invention, book and other creative piece", "Invention, book and other creative piece",
                          ["book", "Invention, book and other creative piece", "other"]) == 1  # fmt: skip


def test_code_is_the_first_line_that_is_no_comment():
    response = "\n```python\n# the next line\n// or this\nreturn total\nprint(total)"
    assert code_similarity(response, "return total") == 1
    expected = round(100 * SequenceMatcher(None, "return total", "return count").ratio()) / 100
    assert code_similarity(response, "return count") == expected


@pytest.mark.parametrize("task", LONGBENCH_TASKS)
def test_every_task_has_prompt_metric_and_length(task):
    published = PUBLISHED[task]
    assert published["metric"] in METRICS and published["max_tokens"] in (32, 64, 128, 512)
    assert "{context}" in published["prompt"]


@pytest.mark.parametrize("task", LONGBENCH_TASKS)
def test_prompts_are_those_of_lm_eval_but_for_white_space(task):
    """An independent copy of the published ones; it strips their ends and has single line breaks."""
    text = (files("lm_eval") / "tasks" / "longbench" / f"{task}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("!function ", ""))
    ours = PUBLISHED[task]["prompt"].replace("{context}", "{{context}}").replace("{input}", "{{question}}")
    assert "".join(ours.split()) == "".join(config["doc_to_text"].split())
    assert PUBLISHED[task]["max_tokens"] == config["generation_kwargs"]["max_gen_toks"]


def test_there_are_sixteen_tasks():
    assert len(LONGBENCH_TASKS) == 16


def test_the_best_reference_counts_and_few_shot_answers_are_one_line():
    row = {"answers": ["a king", "silver river"], "all_classes": None}
    assert score("hotpotqa", "silver river", row) == 1
    assert score("triviaqa", "\nsilver river\nQuestion: more", row) == 1
    assert score("hotpotqa", "\nsilver river\nQuestion: more", row) < 1


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(2, 20))
def test_truncation_keeps_both_ends(ids, limit):
    kept = truncate_middle(ids, limit)
    assert kept == ids if len(ids) <= limit else len(kept) == limit // 2 * 2
    half = limit // 2
    assert kept[:half] == ids[:half] and kept[len(kept) - half :] == ids[len(ids) - half :] or len(ids) < limit
