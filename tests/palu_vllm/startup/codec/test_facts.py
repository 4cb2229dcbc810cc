"""What is told of a served codec is what its files and the model's configuration say."""

import json

import pytest
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.attention_backend.codec.served import dense_bytes_per_token
from palu_vllm.format.codec.file import JSON, REPORT, load_codec
from palu_vllm.startup.codec.facts import CodecFacts, files_digest, reported_losses, span
from tests.support.codecs.models import EIGHT_TO_TWO, write_codec


def facts_of(model, codec) -> CodecFacts:
    settings = {"palu": {"codec": str(codec)}}
    return CodecFacts.of(EngineArgs(str(model), dtype="float32", additional_config=settings).create_engine_config())


@pytest.fixture(scope="module")
def whole(dense, tmp_path_factory):
    out = write_codec(tmp_path_factory.mktemp("codecs") / "english-4x", dense(), EIGHT_TO_TWO, ((64, 3),))
    (out / REPORT).write_text(json.dumps({"predicted_kl": 0.011, "kl": 0.0125, "layers": {"0": 0}}))
    return out


def test_a_codec_of_all_layers(dense, whole):
    facts, said = facts_of(dense(), whole), load_codec(whole)
    assert (facts.codec, facts.digest, facts.base_model) == ("english-4x", files_digest(whole), str(dense()))
    assert facts.layers == (0, 1) and facts.layers_left_dense == () and facts.group_sizes == (2, 2)
    assert facts.bits_k == pytest.approx([(8 * 8 + 24 * 4 + 16 * 3 + 16 * 2) / 64] * 2) and facts.bits_v == (3, 3)
    assert (facts.kl, facts.predicted_kl) == (0.0125, 0.011)
    assert facts.bytes_per_token == said.bytes_per_token
    assert facts.dense_bytes_per_token == dense_bytes_per_token(said, "float32") == 2 * 2 * 4 * 32 * 4
    found = facts.as_json()
    assert found["kind"] == "codec" and found["compression_ratio"] == round(facts.compression_ratio, 4)
    assert found["saved_bytes_per_token"] == facts.dense_bytes_per_token - facts.bytes_per_token
    assert not {"rank_k", "source_layers", "value_path"} & found.keys()
    assert json.loads(json.dumps(found))["bits_k"] == list(facts.bits_k)


def test_the_line_of_the_log(dense, whole):
    line = facts_of(dense(), whole).line()
    for part in (
        "the codec english-4x (", "for 2 layers, 3.8 bits in K and 3 in V", "bytes of KV cache per token in place of",
        "x the tokens)", "KL 0.0125 from the dense model (predicted 0.0110)", "position 0 around means of its own",
    ):  # fmt: skip
        assert part in line
    assert "\n" not in line and "rank" not in line


def test_layers_that_are_left_dense_are_told(dense, tmp_path):
    """The bytes are those of the coded layers, so the tokens are not as many times more."""
    facts = facts_of(dense(), write_codec(tmp_path / "codec", dense(), layers=[1]))
    assert facts.layers == (1,) and facts.layers_left_dense == (0,) and len(facts.bits_k) == 1
    assert facts.dense_bytes_per_token == 2 * 4 * 32 * 4
    line = facts.line()
    assert "for 1 layers, 1 left dense" in line and "x fewer bytes in them)" in line
    assert "KL from the dense model not known" in line


@pytest.mark.parametrize("report", [None, "{", "[]", '{"kl": "0.1"}'])
def test_a_report_that_is_missing_or_damaged_says_nothing(tmp_path, report):
    if report is not None:
        (tmp_path / REPORT).write_text(report)
    assert reported_losses(tmp_path) == {}


def test_a_digest_follows_the_files(dense, tmp_path):
    one, same = (write_codec(tmp_path / name, dense()) for name in ("one", "same"))
    assert files_digest(one) == files_digest(same) and len(files_digest(one)) == 16
    (same / JSON).write_text((same / JSON).read_text() + " ")
    files_digest.cache_clear()
    assert files_digest(one) != files_digest(same)


@pytest.mark.parametrize(
    ("numbers", "words"), [((4,), "4"), ((3.83, 4.0, 4.83), "3.8-4.8"), ((2, 2), "2"), ((1, 3), "1-3")]
)
def test_a_span(numbers, words):
    assert span(numbers) == words
