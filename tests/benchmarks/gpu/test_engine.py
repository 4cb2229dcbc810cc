"""Tokens are compared one by one, and the time of a step is that of decoding alone."""

import argparse
import json

import pytest

from benchmarks.gpu import engine
from benchmarks.gpu.engine import DECODED, PROMPTS, SHIPPED, TOKENS, graphed, shipped_options, told_times, told_tokens

ANSWER = list(range(TOKENS))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The options of one comparison, whose engine answers every prompt with ``ANSWER``."""
    monkeypatch.setattr(engine, "start", lambda **_: None)
    monkeypatch.setattr(engine, "greedy", lambda *_: [ANSWER] * len(PROMPTS))
    return argparse.Namespace(
        models=tmp_path, arm="dense", write=False, rows=tmp_path / "rows", rehearse=True, graphs=False
    )


def test_equal_tokens_pass(asked):
    asked.write = True
    assert told_tokens(asked)["written"]
    asked.write = False
    row = told_tokens(asked)
    assert row["ok"] and row["equal_tokens"] == len(PROMPTS) * TOKENS


def test_one_other_token_fails(asked):
    other = [ANSWER, [*ANSWER[:-1], 999], ANSWER]
    (asked.models / "tokens.json").write_text(json.dumps({"dense": other}))
    row = told_tokens(asked)
    assert not row["ok"] and row["equal_tokens"] == len(PROMPTS) * TOKENS - 1


def test_writing_one_arm_keeps_the_others(asked):
    asked.write = True
    told_tokens(asked)
    told_tokens(argparse.Namespace(**(vars(asked) | {"arm": "palu"})))
    assert set(json.loads((asked.models / "tokens.json").read_text())) == {"dense", "palu"}


def test_a_step_is_the_difference_over_the_steps_between(asked, monkeypatch):
    monkeypatch.setattr(engine, "seconds", lambda llm, requests, context, tokens: 5.0 + 0.25 * (tokens - 1))
    rows = told_times(asked)
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["seconds_per_step"] == pytest.approx(0.25) and row["seconds_of_prefill"] == 5.0 for row in rows)
    assert len((asked.models / "rows").read_text().splitlines()) == 2 and DECODED > 30


@pytest.mark.parametrize("arm", SHIPPED)
def test_graphs_leave_the_other_options(arm, tmp_path):
    """Attention is inside them, whatever else an arm's settings say."""
    plain = shipped_options(arm, tmp_path)
    found = graphed(plain, [1, 4])
    assert not found["enforce_eager"] and found["compilation_config"]["cudagraph_capture_sizes"] == [1, 4]
    assert found["additional_config"]["palu"].pop("cuda_graphs") is True
    assert found["additional_config"]["palu"] == plain.get("additional_config", {"palu": {}})["palu"]
    assert all(found[name] == plain[name] for name in set(plain) - {"enforce_eager", "additional_config"})


@pytest.mark.parametrize("arm", SHIPPED)
def test_the_shipped_model_is_asked_in_float32(arm, tmp_path):
    options = shipped_options(arm, tmp_path)
    assert options["dtype"] == "float32" and options["enforce_eager"]
    assert ("codec" in str(options.get("additional_config"))) == (arm == "codec")
