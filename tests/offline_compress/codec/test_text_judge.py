"""A codec judged on a user's text: nothing lost in 16 bits, more in few, and one sentence for what is no text."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.judge import codec_divergence
from offline_compress.codec.text_judge import TextJudgeOptions, judge_text, judged
from offline_compress.run.errors import CompressionError
from offline_compress.run.progress import ignore
from palu_vllm.format.codec.file import load_codec
from tests.support.codecs.models import write_codec, write_exact_codec
from tests.support.tiny_models import write_text


def test_it_is_what_the_calibration_measures(dense, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(dense(), dtype=torch.float32).eval()
    layers = load_codec(write_codec(tmp_path, dense(), ((32, 3),), ((32, 2),))).layers
    rows, told = torch.randint(256, (2, 24)), []
    found = judged(model, list(rows), layers, told.append)
    assert found.kl == pytest.approx(codec_divergence(model, rows, layers), rel=1e-4) and found.tokens == 48
    assert 0 < found.same_top < 1
    with torch.inference_mode():
        losses = [model(row[None], labels=row[None]).loss.double() for row in rows]
    assert found.dense_perplexity == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4) != found.coded_perplexity
    assert [(event["event"], event["number"], event["of"]) for event in told] == [("row", 0, 2), ("row", 1, 2)]


def test_sixteen_bits_lose_nothing(dense, tmp_path):
    exact, text = load_codec(write_exact_codec(tmp_path / "codec", dense())), write_text(tmp_path / "text.txt")
    found = judge_text(dense(), text, exact.layers, TextJudgeOptions(2, 32), ignore)
    assert found.kl < 1e-4 and found.same_top > 0.95
    assert found.coded_perplexity == pytest.approx(found.dense_perplexity, rel=1e-2)


def test_what_is_no_text_or_too_short_is_refused_in_one_sentence(dense, tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short.txt").write_text("A word.")
    for name, expected in (("missing.txt", "missing.txt"), ("picture.txt", "UTF-8"), ("short.txt", "give more text")):
        with pytest.raises(CompressionError, match=expected):
            judge_text(dense(), tmp_path / name, {}, TextJudgeOptions(), ignore)
