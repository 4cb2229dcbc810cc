"""Two servers that NIXL joins, measured beside one, on a tiny model."""

import argparse
import statistics

import pytest

from benchmarks.serving.disaggregated import measure, median_ms
from benchmarks.serving.peers import Answer
from palu_vllm.format.codec.file import load_codec
from tests.support.codecs.models import write_codec
from tests.support.tiny_models import write_text


def test_the_median_is_of_first_tokens():
    seconds = [0.5, 0.1, 0.2]
    assert median_ms([Answer([1], each) for each in seconds]) == 1e3 * statistics.median(seconds)


@pytest.mark.serving
@pytest.mark.slow
def test_tokens_are_the_same_and_bytes_are_those_of_the_codec(dense, tmp_path):
    pytest.importorskip("nixl", reason="the extra `disaggregated` is not installed")
    codec, text = write_codec(tmp_path / "codec", dense()), write_text(tmp_path / "text.txt")
    options = argparse.Namespace(
        arms=f"mine={codec}", model=dense(), calib_data=text, text=text, context=127, batch=2, tokens=4,
        dtype="float32", pool_gib=1,
    )  # fmt: skip
    [row] = measure(options)["rows"]
    assert row["answers_that_are_the_same"] == row["answers"] == 2 and row["times_fewer_bytes"] == 1
    assert row["bytes_per_token"] == load_codec(codec).bytes_per_token, "prompts are whole blocks"
    assert min(row["first_token_ms"], row["first_token_of_one_server_ms"]) > 0
