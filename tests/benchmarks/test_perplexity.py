"""What is scored, and what the command prints."""

import json
import math
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.provenance import ROOT
from benchmarks.perplexity import main, row_loss, rows_of
from tests.support.codecs.in_transformers import with_codec
from tests.support.codecs.models import EIGHT_TO_TWO, write_codec
from tests.support.processes import forked
from tests.support.tiny_models import build_dense


@pytest.mark.parametrize("begin", [(), (0,)], ids=["no BOS", "BOS"])
@pytest.mark.parametrize("length", [2, 63, 64, 65, 111])
def test_rows_hold_every_token_once(length, begin):
    rows = rows_of(range(1, length + 1), 16, begin)
    kept = [token for row in rows for token in row[len(begin) :]]
    dropped = length - len(kept)
    assert kept == list(range(1, len(kept) + 1))
    assert dropped <= 1
    assert all(2 <= len(row) <= 16 and tuple(row[: len(begin)]) == begin for row in rows)


def test_limit_keeps_the_first_rows():
    assert rows_of(range(100), 10, limit=3) == rows_of(range(100), 10)[:3]


@pytest.mark.parametrize(("tokens", "context"), [(1, 16), (0, 16), (50, 1)])
def test_nothing_to_score_is_said(tokens, context):
    with pytest.raises(ValueError, match="expected at least 2"):
        rows_of(range(tokens), context)


def test_loss_leaves_the_first_token_out():
    logprobs = [
        None,
        {5: SimpleNamespace(logprob=-1.5)},
        {7: SimpleNamespace(logprob=-0.25), 1: SimpleNamespace(logprob=-9)},
    ]
    assert row_loss(logprobs, [3, 5, 7]) == pytest.approx(1.75)


def in_transformers(model, model_dir, text) -> tuple[int, float]:
    """Scored tokens and perplexity of rows of 48 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = rows_of(tokenizer.encode(text.read_text(), add_special_tokens=False), 48, tokenizer.encode(""))
    with torch.inference_mode():
        losses = [
            (model(ids, labels=ids, use_cache=False).loss.item(), len(row) - 1)
            for row in rows
            for ids in [torch.tensor([row])]
        ]
    tokens = sum(count for _, count in losses)
    return tokens, math.exp(sum(loss * count for loss, count in losses) / tokens)


@pytest.mark.serving
@pytest.mark.parametrize(
    "coded", [pytest.param(False, id="dense", marks=pytest.mark.slow), pytest.param(True, id="codec")]
)
def test_command_agrees_with_transformers(tmp_path, coded):
    model_dir, text = build_dense(tmp_path / "dense", "llama"), tmp_path / "text.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 20)
    command = [sys.executable, "-m", "benchmarks.perplexity", "--model", str(model_dir), "--text", str(text)]
    command += ["--context", "48", "--dtype", "float32", "--json"]
    with ExitStack() as stack:
        if coded:
            codec = write_codec(tmp_path / "codec", model_dir, EIGHT_TO_TWO, EIGHT_TO_TWO)
            command += ["--codec", str(codec)]
            model = stack.enter_context(with_codec(model_dir, codec))
        else:
            model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        tokens, expected = in_transformers(model, model_dir, text)
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert result["tokens"] == tokens
    assert result["perplexity"] == pytest.approx(expected, rel=1e-3)


def test_missing_file_is_one_sentence(tmp_path):
    done = forked.run(main, "--model", tmp_path / "none")
    assert done.returncode == 1
    assert "does not exist" in done.stderr and "Traceback" not in done.stderr
