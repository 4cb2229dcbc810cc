"""The generator is seeded, every prompt differs, lengths are those that were asked for."""

import json

import numpy as np
import pytest

from benchmarks.load.client.lengths import draw, parse_lengths
from benchmarks.load.client.prompts import FIRST_ID, Mix, as_words, from_file, generated, read_prompts

BLOCK = 16
COUNT = 400


def mix(seed=0, prompt="lognormal:64:0.8:200", **options):
    return Mix(seed, parse_lengths(prompt), parse_lengths("uniform:4:12"), **options)


@pytest.mark.parametrize("text", ["fixed:7", "uniform:3:9", "lognormal:20:0.5:60"])
def test_lengths_are_whole_and_within_their_bounds(text):
    lengths, generator = parse_lengths(text), np.random.default_rng(0)
    drawn = [draw(lengths, generator) for _ in range(2000)]
    assert all(isinstance(length, int) and 1 <= length <= lengths.longest for length in drawn)
    if text != "fixed:7":
        assert len(set(drawn)) > 5
    if text.startswith("uniform"):
        assert {min(drawn), max(drawn)} == {3, 9}
    if text.startswith("lognormal"):
        assert np.median(drawn) == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    "text", ["", "7", "fixed", "fixed:0", "fixed:x", "uniform:9:3", "uniform:3", "lognormal:20:-1:60", "normal:3:4"]
)
def test_lengths_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="expected lengths"):
        parse_lengths(text)


def test_a_request_depends_on_seed_and_index_alone():
    there = [generated(mix(), index) for index in range(50)]
    back = [generated(mix(), index) for index in reversed(range(50))]
    assert there == back[::-1]
    assert all(a.prompt != b.prompt for a, b in zip(there, (generated(mix(1), i) for i in range(50)), strict=True))


@pytest.mark.parametrize("prompt", ["lognormal:64:0.8:200", "fixed:2"])
def test_no_two_prompts_share_a_block(prompt):
    prompts = [generated(mix(prompt=prompt), index).prompt for index in range(COUNT)]
    assert len({tuple(prompt[:BLOCK]) for prompt in prompts}) == COUNT
    assert all(FIRST_ID <= token < 256 for prompt in prompts for token in prompt)


def test_lengths_are_exact():
    assert {len(generated(mix(prompt="fixed:37"), index).prompt) for index in range(20)} == {37}
    assert {generated(mix(), index).max_tokens for index in range(COUNT)} == set(range(4, 13))


def test_a_share_of_prompts_has_the_common_prefix_and_differs_after_it():
    shared = mix(prompt="fixed:100", prefix_share=0.3, prefix_tokens=2 * BLOCK)
    prompts = [generated(shared, index).prompt for index in range(COUNT)]
    heads = [tuple(prompt[: 2 * BLOCK]) for prompt in prompts]
    common = max(set(heads), key=heads.count)
    assert heads.count(common) / COUNT == pytest.approx(0.3, abs=0.07)
    assert len(set(heads)) == COUNT - heads.count(common) + 1
    assert len({tuple(prompt) for prompt in prompts}) == COUNT
    assert {len(prompt) for prompt in prompts} == {100}


def test_a_share_hangs_up_within_its_answer():
    requests = [generated(mix(disconnect_share=0.25), index) for index in range(COUNT)]
    leaving = [request for request in requests if request.hang_up_after]
    assert len(leaving) / COUNT == pytest.approx(0.25, abs=0.07)
    assert all(1 <= request.hang_up_after < request.max_tokens for request in leaving)
    calm = [generated(mix(), index) for index in range(COUNT)]
    assert [(r.prompt, r.max_tokens) for r in requests] == [(r.prompt, r.max_tokens) for r in calm]


def test_prompts_of_a_file_come_in_order_and_never_twice(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a", "max_tokens": 3}, {"prompt": "b", "output_tokens": 5}, "c"]
    file.write_text("\n".join(map(json.dumps, rows)))
    requests = [from_file(read_prompts(file), mix(), index) for index in range(9)]
    assert [request.prompt for request in requests[:4]] == ["a", "b", "c", "[1] a"]
    assert [request.max_tokens for request in requests[:2]] == [3, 5]
    assert 4 <= requests[2].max_tokens <= 12
    assert len({request.prompt for request in requests}) == 9


@pytest.mark.parametrize("lines", ["", "3", '{"text": "a"}', '"a"\n"a"'])
def test_bad_files_are_refused(tmp_path, lines):
    file = tmp_path / "prompts.jsonl"
    file.write_text(lines)
    with pytest.raises(ValueError, match="prompts.jsonl"):
        read_prompts(file)


def test_the_chat_endpoint_gets_as_many_words():
    prompt = generated(mix(prompt="fixed:30"), 0).prompt
    assert len(as_words(prompt).split()) == 30
    assert as_words("as it is") == "as it is"
