"""``palu-calibrate`` on tiny models: what it writes, what it promises of it, and what it refuses."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.collect import Collector, sample_positions
from offline_compress.codec.judge import codec_divergence
from offline_compress.codec.options import CalibrateOptions
from offline_compress.codec.pipeline import REPORT, run
from offline_compress.codec.probes import LEAST
from offline_compress.commands.calibrate import main
from offline_compress.run.progress import ignore
from palu_vllm.format.codec.digest import model_digest
from palu_vllm.format.codec.file import load_codec
from tests.support.tiny_models import SMALL, build_dense, write_text

QUICK = {"samples": 6, "held_out": 2, "seqlen": 48, "context": 96}
WORDS = ("--samples", "6", "--held-out", "2", "--seqlen", "48", "--context", "96")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_dense(tmp_path_factory.mktemp("llama"), "llama", **SMALL)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def calibrated(model, text, out, **options):
    made = CalibrateOptions(model=str(model), out=out, calib_data=str(text), **(QUICK | options))
    return run(made, ignore)


@pytest.fixture(scope="module")
def reports(model, text, tmp_path_factory):
    base = tmp_path_factory.mktemp("codecs")
    return {x: (base / str(x), calibrated(model, text, base / str(x), target_compression=x)) for x in (1.0, 2.0, 4.0)}


def test_files_and_report(reports, model):
    directory, report = reports[4.0]
    written = {path.name for path in directory.iterdir()}
    assert written >= {"palu_codec.json", "palu_codec.safetensors", REPORT, "README.md"}
    codec = load_codec(directory)
    assert codec.layers.keys() == {0, 1} and codec.model["digest"] == model_digest(model)
    assert report["bytes_per_token"] == codec.bytes_per_token <= report["dense_bytes_per_token"] / 4
    assert report["dense_bytes_per_token"] == 2 * 2 * 4 * 16 * 2
    assert json.loads((directory / REPORT).read_text()) == report and len(report["formats"]) <= 4
    assert {"predicted_kl", "kl", "seconds", "provenance"} <= report.keys()


def test_the_report_says_what_layers_lose_over_what_was_predicted(reports):
    ratios = reports[4.0][1]["loss_over_predicted"]
    assert ratios.keys() == {"0", "1"} and all(ratio >= LEAST for ratio in ratios.values())
    assert reports[1.0][1]["loss_over_predicted"] == {}  # nothing is quantized there


def test_fewer_bytes_lose_more_and_sixteen_bits_nothing(reports):
    kls = [report["kl"] for _, report in reports.values()]
    assert kls[0] < 1e-4 < kls[2] and kls[0] < kls[1] < kls[2]
    predicted = reports[4.0][1]["predicted_kl"]
    assert 0.2 < predicted / kls[2] < 5


def test_the_report_measures_what_the_codec_in_the_files_loses(reports, model, text):
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = torch.randint(0, 255, (1, 40), generator=torch.Generator().manual_seed(1))
    kls = [codec_divergence(network, tokens, load_codec(directory).layers) for directory, _ in reports.values()]
    assert kls[0] < 1e-4 and kls[1] < kls[2]


def test_the_same_command_gives_the_same_bytes(reports, model, text, tmp_path):
    calibrated(model, text, tmp_path / "again")
    for name in ("palu_codec.json", "palu_codec.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (reports[4.0][0] / name).read_bytes()


def test_resume_takes_over_the_moments(reports, model, text, tmp_path, monkeypatch):
    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offline_compress.codec.pipeline.solve_all", killed)
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, text, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Collector, "sample", killed)  # nothing is collected again
    calibrated(model, text, tmp_path / "out", resume=True)
    name = "palu_codec.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (reports[4.0][0] / name).read_bytes()
    assert not list(tmp_path.glob("*.tmp-work"))


@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "qwen3", "mixtral"])
def test_any_family_as_it_is(family, text, tmp_path):
    options = {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    }
    model = build_dense(tmp_path / "model", family, **(SMALL | (options if family == "gemma3_text" else {})))
    report = calibrated(model, text, tmp_path / "out")
    assert report["compression"] >= 4 and 0 < report["kl"] < 1
    assert set(report["layers"]) == {"0", "1"}


def test_random_tokens_need_no_text(model, tmp_path):
    made = CalibrateOptions(model=str(model), out=tmp_path / "out", no_data=True, **QUICK)
    assert run(made, ignore)["calibration"].startswith("random tokens")


def test_per_head_has_a_group_per_head(model, text, tmp_path):
    report = calibrated(model, text, tmp_path / "out", per_head=True)
    assert load_codec(tmp_path / "out").layers[0].num_groups == 4 and set(report["group_size"].values()) == {1}


def test_short_samples_show_what_a_long_text_has(tmp_path):
    """Covariances of keys at positions spread over 8,192 are those of a text that long."""
    directory = build_dense(tmp_path, "llama", **(SMALL | {"max_position_embeddings": 8192}))
    network = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)

    def second_moment(rows, context):
        collector = Collector(network, None)
        for number, row in enumerate(rows):
            collector.sample(row, sample_positions(number, len(rows), len(row), context, generator), generator)
        moments = collector.collected.layers[0]
        return moments.sides.key.second[0] / moments.tokens

    tokens = torch.randint(3, 250, (8192,), generator=generator)
    long = second_moment(tokens[None], 8192)
    short = second_moment(tokens.view(128, 64), 8192)
    near = second_moment(tokens.view(128, 64), 64)
    size = long.norm()
    assert (short - long).norm() < 0.12 * size < 0.5 * (near - long).norm()


def test_dry_run_says_memory_and_time_and_writes_nothing(model, text, tmp_path, capsys):
    assert main([str(model), str(tmp_path / "out"), "--calib-data", str(text), "--dry-run", *WORDS]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seconds"] >= 0 and said["memory_bytes"] > 0 and not (tmp_path / "out").exists()


REFUSED = {
    "no data": ([], "--calib-data FILE or --no-data"),
    "too much": (["--calib-data", "TEXT", "--target-compression", "9"], "expected 1 to 7.5"),
    "samples beyond the context": (["--calib-data", "TEXT", "--seqlen", "200"], "less than a sample"),
    "group": (["--calib-data", "TEXT", "--group-size", "3"], "does not divide"),
    "little text": (["--calib-data", "SHORT"], "give more text"),
    "no file": (["--calib-data", "MISSING"], "MISSING"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_one_sentence_and_leaves_nothing(name, model, text, tmp_path, capsys):
    words, sentence = REFUSED[name]
    (tmp_path / "SHORT").write_text("a few words")
    files = {"TEXT": str(text), "SHORT": str(tmp_path / "SHORT"), "MISSING": str(tmp_path / "MISSING")}
    assert main([str(model), str(tmp_path / "out"), *WORDS, *(files.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in error and not list(tmp_path.glob("out*"))


def test_a_directory_without_a_model_is_refused(text, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "out"), "--calib-data", str(text), *WORDS]) == 2
    assert "give a model directory" in capsys.readouterr().err
