"""A server says at its start what its user may not expect."""

import json
import shutil

import pytest
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.startup.notices import notices
from palu_vllm.startup.served import served_config


@pytest.fixture
def said(palu, tmp_path):
    """Of a server with these options: its notices. ``tokenizer`` is the content of ``tokenizer.json``."""

    def start(tokenizer=None, **options):
        model = shutil.copytree(palu(), tmp_path / "model")
        if tokenizer is not None:
            (model / "tokenizer.json").write_text(json.dumps(tokenizer))
        config = EngineArgs(str(model), skip_tokenizer_init=True, **options).create_engine_config()
        return list(notices(config, served_config(config)))

    return start


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float32_that_is_served_in_16_bits(said, dtype):
    (sentence,) = said(dtype=dtype)
    assert f"are float32 and are served in {dtype}; give --dtype float32" in sentence


def test_float32_that_is_served_as_it_is(said):
    assert said(dtype="float32") == []


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"vocab": {"a": 0, "b": 100_000}}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 100_000, "content": "<x>"}]},
        {"model": {"vocab": [["a", 0.0]] * 100_001}},
    ],
    ids=["vocabulary", "added", "unigram"],
)
def test_more_tokens_than_rows(said, tokenizer):
    (sentence,) = said(tokenizer, dtype="float32")
    assert "the tokenizer has 100001 tokens and the model only " in sentence


def test_a_tokenizer_that_fits(said):
    assert said({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}, dtype="float32") == []
