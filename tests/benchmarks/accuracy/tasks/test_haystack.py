"""Haystacks and prompts have the lengths, depths and answers that they are said to have."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from benchmarks.accuracy.tasks.haystack import Hay, common_words, place, sentence_end, share_found
from benchmarks.accuracy.tasks.longbench import LongBenchTask
from benchmarks.accuracy.tasks.needle import NeedleTask, word_recall
from benchmarks.accuracy.tasks.needle_styles import NEEDLE_STYLES, needle_style
from benchmarks.accuracy.tasks.ruler import RULER_TASKS, RulerTask
from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.common.shipped import HELD_OUT, MODEL
from tests.support.tiny_models import byte_tokenizer

LENGTHS = (1024, 1536)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(AutoTokenizer.from_pretrained(MODEL))


@pytest.fixture(scope="module")
def haystack(tmp_path_factory) -> str:
    """The beginning of the held-out text: enough words, quick to encode."""
    file = tmp_path_factory.mktemp("hay") / "hay.txt"
    file.write_text(HELD_OUT.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return str(file)


def needles(haystack: str, style: str = "demo", lengths: tuple = LENGTHS, chat: bool = False) -> NeedleTask:
    return NeedleTask(haystack, NEEDLE_STYLES[style], lengths, (0, 50, 100), 2, 0, chat)


@given(
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.tuples(st.floats(0, 1), st.lists(st.integers(100, 120), min_size=1, max_size=3)), max_size=4),
)
def test_placing_loses_nothing_and_stops_at_sentences(hay, wanted):
    filled = place(hay, wanted, lambda token: token == 0)
    assert [token for token in filled if token < 100] == hay
    in_order = [token for _, needle in sorted(wanted, key=lambda pair: pair[0]) for token in needle]
    assert [token for token in filled if token >= 100] == in_order
    cuts = {before for before, after in zip(filled, filled[1:], strict=False) if before < 100 <= after}
    assert cuts <= {0, *hay[-1:]}  # a needle follows the end of a sentence, or all of the haystack


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_depth_is_where_it_says(depth):
    position = place([0] * 100, [(depth, [7])], lambda token: True).index(7)
    assert position == round(100 * depth)


def test_haystacks_have_the_length_and_begin_sentences(tokens):
    hay, rng = Hay(tokens, "One two three. Four five! Six? " * 20), random.Random(0)
    for length in (0, 1, 50, 5000):
        assert len(hay.cut(rng, length)) == length
    starts = {tokens.decode(hay.cut(rng, 8)).strip().split()[0].rstrip("?") for _ in range(30)}
    assert starts == {"One", "Four", "Six"}


def test_too_little_text_is_said(tokens):
    with pytest.raises(ValueError, match="at least 64"):
        Hay(tokens, "short")
    with pytest.raises(ValueError, match="different words"):
        common_words(tokens, "again and again " * 100)


@pytest.mark.parametrize("style", NEEDLE_STYLES)
@pytest.mark.parametrize("chat", [False, True])
def test_needle_prompts_fill_their_length(tokens, haystack, style, chat):
    task = needles(haystack, style, chat=chat)
    prompts = task.prompts(tokens)
    assert len(prompts) == 2 * 3 * 2
    for prompt in prompts:
        assert len(prompt.ids) == prompt.subset["length"] - task.style.max_tokens
        assert prompt.ids[: len(tokens.begin)] == tokens.begin
        text = tokens.decode(prompt.ids)
        assert prompt.answers[0] in text


def test_needles_sit_at_their_depth(tokens, haystack):
    for prompt in needles(haystack).prompts(tokens):
        text = tokens.decode(prompt.ids)
        position = text.index(prompt.answers[0]) / len(text)
        assert position == pytest.approx(prompt.subset["depth"] / 100, abs=0.15)


def test_seeds_decide(tokens, haystack):
    task = needles(haystack)
    other = NeedleTask(**(vars(task) | {"seed": 1}))
    assert task.prompts(tokens) == needles(haystack).prompts(tokens) != other.prompts(tokens)


@pytest.mark.parametrize("kind", RULER_TASKS)
def test_ruler_prompts_hold_their_answers_once_and_fit(tokens, haystack, kind):
    task = RulerTask(kind, haystack, "published", LENGTHS, 2, 0, False)
    prompts = task.prompts(tokens)
    wanted = {"niah_multivalue": 4, "niah_multiquery": 4, "vt": 5}.get(kind, 1)
    for prompt in prompts:
        text = tokens.decode(prompt.ids)
        assert 0.8 * prompt.subset["length"] < len(prompt.ids) + 128 <= prompt.subset["length"]
        assert len(set(prompt.answers)) == wanted
        assert all(answer in text for answer in prompt.answers)
        if kind.startswith("niah"):
            assert all(text.count(answer) == 1 for answer in prompt.answers)


@pytest.mark.parametrize("kind", ["niah_single_2", "niah_multikey_1", "niah_multikey_2"])
def test_ruler_in_the_style_of_the_shipped_model(tokens, haystack, kind):
    prompt = RulerTask(kind, haystack, "demo", (1024,), 1, 0, False).prompts(tokens)[0]
    text = tokens.decode(prompt.ids)
    key = text.rsplit("\nThe token of ", 1)[1].removesuffix(" is")
    assert f"The token of {key} is {prompt.answers[0]}." in text


@pytest.mark.parametrize("kind", ["niah_multivalue", "niah_multiquery", "vt"])
def test_the_demo_style_refuses_what_it_cannot_ask(tokens, haystack, kind):
    with pytest.raises(ValueError, match="one key and one value"):
        RulerTask(kind, haystack, "demo", (1024,), 1, 0, False).prompts(tokens)


def test_lengths_without_room_are_said(tokens, haystack):
    with pytest.raises(ValueError, match="leaves no haystack"):
        needles(haystack, lengths=(16,)).prompts(tokens)
    with pytest.raises(ValueError, match="too short"):
        RulerTask("vt", haystack, "published", (64,), 1, 0, False).prompts(tokens)


def test_longbench_prompts_are_published_ones_cut_in_the_middle(tokens):
    row = {"input": "Who is king?", "context": "word " * 3000, "answers": ["x"]}
    task = LongBenchTask("hotpotqa", "file", 512, None, False)
    ids = task.prompt(tokens, row)
    text = tokens.decode(ids)
    assert len(ids) <= 512 - 32 and text.rstrip().endswith("Question: Who is king?\nAnswer:")
    assert "Answer the question based on the given passages." in text[:200]
    renamed = {"question": row["input"], "context": row["context"]}
    assert task.prompt(tokens, renamed) == ids


def test_chat_leaves_continuations_alone(tokens):
    row = {"input": "x = 1", "context": "import this\n", "answers": ["x"]}
    plain, chat = (LongBenchTask("lcc", "file", 512, None, chat).prompt(tokens, row) for chat in (False, True))
    assert plain == chat
    qa = [LongBenchTask("hotpotqa", "file", 512, None, chat).prompt(tokens, row) for chat in (False, True)]
    assert qa[0] != qa[1] and qa[1].count(tokens.begin[0] if tokens.begin else -1) <= 1


def test_chat_needs_a_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Tokens(tokenizer).wrap("a", "b", True)


def test_sentence_ends_are_seen(tokens):
    ends = sentence_end(tokens)
    assert ends(tokens.encode("go.")[-1]) and not ends(tokens.encode("go")[-1])


def test_what_was_found_is_counted():
    assert share_found("The Golden Stone.", ("golden stone", "river")) == 0.5
    assert word_recall("golden river", "golden stone.") == 0.5
    assert word_recall("it is a golden stone", "golden stone.") == 1


def test_needle_styles_come_from_files_too(tmp_path):
    file = tmp_path / "style.json"
    style = {"before": "", "needle": "{key}: {value}.", "question": "{key}:", "answer": "{value}", "stop": ["\n"]}
    file.write_text(json.dumps(style))
    assert needle_style(str(file)).filled("a b", "c d").needle == "a b: c d."
    file.write_text(json.dumps({"needle": "x"}))
    with pytest.raises(ValueError, match="expected the fields before, needle"):
        needle_style(str(file))
    with pytest.raises(ValueError, match="unknown; expected usual, demo"):
        needle_style("unusual")
