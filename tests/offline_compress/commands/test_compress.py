"""The command: names, messages, exit codes, and what a kill leaves behind."""

import json
import os
import signal
from pathlib import Path

import pytest

from offline_compress.commands.compress import main, parse_options
from offline_compress.options import CompressOptions
from offline_compress.run.errors import CompressionError
from tests.support.processes import forked
from tests.support.tiny_models import build_even


def parse(line: str) -> CompressOptions:
    return parse_options(line.split())


def test_defaults_are_those_of_the_options():
    assert parse("M OUT") == CompressOptions(model="M", out=Path("OUT"))


def test_all_names():
    options = parse(
        "M OUT --rank-ratio 0.3 --group-size 2 --objective svd --search fisher --value-path auto --calib-data F "
        "--calib-samples 5 --calib-seqlen 77 --seed 3 --dtype float16 --dry-run --overwrite --device cpu"
    )
    assert options == CompressOptions(
        "M",
        Path("OUT"),
        rank_ratio=0.3,
        group_size=2,
        objective="svd",
        search="fisher",
        value_path="auto",
        calib_data="F",
        whiten_samples=5,
        fisher_samples=5,
        calib_seqlen=77,
        seed=3,
        dtype="float16",
        device="cpu",
        overwrite=True,
        dry_run=True,
    )


def test_the_default_search_follows_from_the_objective():
    assert parse("M OUT").objective == "weighted"
    assert parse("M OUT").search == parse("M OUT --objective weighted").search == "energy"
    assert parse("M OUT --objective whiten").search == parse("M OUT --objective svd").search == "uniform"
    assert parse("M OUT --target-compression 4").search == "uniform"


def test_names_beyond_the_paper():
    options = parse("M OUT --objective weighted --search sensitivity --k-cost 2 --reorder-heads --no-refit")
    assert (options.objective, options.search) == ("weighted", "sensitivity")
    assert (options.k_cost, options.reorder_heads, options.refit) == (2.0, True, False)
    assert parse("M OUT --refit").refit and parse("M OUT").refit is None


def test_names_of_the_reference():
    theirs = parse(
        "--model_id M --param_ratio_target 0.3 --head_group_size 2 --search_method fisher --decompose_method svd "
        "--calib_dataset F --n_fisher_calib_samples 3 --n_whiten_calib_samples 9 --calib_seqlen 77 --seed 3 "
        "--device cpu OUT"
    )
    ours = parse(
        "M OUT --rank-ratio 0.3 --group-size 2 --search fisher --objective svd --calib-data F "
        "--calib-seqlen 77 --seed 3 --device cpu --n_fisher_calib_samples 3 --n_whiten_calib_samples 9"
    )
    assert theirs == ours
    assert (ours.fisher_samples, ours.whiten_samples) == (3, 9)


def test_bits_of_latents():
    assert parse("M OUT").fractions_k == parse("M OUT").fractions_v == ((1.0, 16),)
    assert parse("M OUT --latent-bits 4").fractions_k == ((1.0, 4),)
    assert parse("M OUT --lt_bits 4 --lt_hadamard") == parse("M OUT --latent-bits 4 --hadamard")
    mixed = parse("M OUT --latent-bits-k 3 --latent-bits 4 --no-hadamard")
    assert (mixed.fractions_k, mixed.fractions_v, mixed.hadamard) == (((1.0, 3),), ((1.0, 4),), False)
    tiers = parse("M OUT --tiers 0.25:8,0.75:3 --latent-bits-v 4")
    assert (tiers.fractions_k, tiers.fractions_v, tiers.hadamard) == (((0.25, 8), (0.75, 3)), ((1.0, 4),), None)


def test_running():
    options = parse("M OUT --resume --workers 3")
    assert (options.resume, options.workers) == (True, 3)
    assert (parse("M OUT").resume, parse("M OUT").workers) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--latent-bits 5", "have bits other than 16, 8, 4, 3, 2; give --latent-bits 4"),
        ("--tiers 0.5:8", "do not add up to 1; give"),
        ("--tiers 0.5:4,0.5:8", "expected fewer or as many; give"),
        ("--tiers 2:8", "do not add up to 1"),
        ("--latent-group-size 20", "latent group size 20 is not 0 or a positive multiple of 16; give"),
        ("--latent-group-size -16", "latent group size -16 is not 0 or a positive multiple of 16; give"),
        ("--latent-clip-ratio 0", "latent clip ratio 0.0 is outside (0, 1]; give"),
        ("--latent-clip-ratio 1.5", "latent clip ratio 1.5 is outside (0, 1]; give"),
        ("--latent-clip-ratio nan", "latent clip ratio nan is outside (0, 1]; give"),
        ("--tiers 1:4 --latent-bits 4", "both say the bits of latents; give one of them"),
    ],
)
def test_bits_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(CompressionError) as refused:
        parse(f"M OUT {arguments}")
    assert sentence in str(refused.value)


def test_scales_of_latents():
    default = parse("M OUT")
    assert (default.latent_group_size, default.latent_symmetric, default.latent_clip_ratio) == (0, False, None)
    theirs = parse("M OUT --lt_bits 4 --lt_group_size 32 --lt_sym --lt_clip_ratio 0.9")
    ours = parse("M OUT --latent-bits 4 --latent-group-size 32 --latent-symmetric --latent-clip-ratio 0.9")
    assert theirs == ours
    assert (ours.latent_group_size, ours.latent_symmetric, ours.latent_clip_ratio) == (32, True, 0.9)


def test_the_special_count_wins_over_the_common_one():
    options = parse("M OUT --calib-samples 5 --n_fisher_calib_samples 2")
    assert (options.fisher_samples, options.whiten_samples) == (2, 5)


def test_options_may_stand_between_the_paths():
    assert parse("M --seed 3 OUT") == parse("M OUT --seed 3")


@pytest.mark.parametrize(
    "argv", ["OUT", "M OUT x", "--model_id M", "--model_id M M OUT", "M OUT --search best", "M O -x"]
)
def test_arguments_that_argparse_refuses(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert "palu-compress: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rank-ratio 0", "outside (0, 1]"),
        ("--rank-ratio 1.01", "outside (0, 1]"),
        ("--rank-ratio nan", "outside (0, 1]"),
        ("--group-size 3", "does not divide the 4 key-value heads; expected one of 1, 2, 4"),
        ("--group-size 0", "group size is 0"),
        ("--group-size-k 2 --group-size-v 3", "group size 3 does not divide the 4 key-value heads"),
        ("--calib-samples 0", "samples is 0"),
        ("--workers 0", "workers is 0; expected at least 1."),
        ("--calib-seqlen 1", "calib seqlen is 1; expected at least 2."),
        ("--seed -1", "seed is -1; expected at least 0."),
        ("--device tpu", "device 'tpu' is not supported"),
        ("--device cuda:99", "is not there"),
        ("", "needs calibration data; add --calib-data"),
        ("--objective svd --search fisher", "needs calibration data"),
        ("--search uniform", "needs calibration data"),
        ("--calib-data FILE --calib-seqlen 129", "exceed the model's context of 128"),
        ("--calib-data /no/such/file", "is not a file"),
    ],
)
def test_one_sentence_exit_code_2_and_nothing_behind(tmp_path, dense, text, capsys, arguments, words):
    argv = [text if part == "FILE" else part for part in arguments.split()]
    assert main([str(dense("llama")), str(tmp_path / "out"), *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("palu-compress: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_without_overwrite(tmp_path, dense, capsys):
    argv = [str(dense("llama")), str(tmp_path / "out"), "--rank-ratio", "1"]
    assert main(argv) == 0
    assert "bytes of KV cache per token" in capsys.readouterr().out
    assert main(argv) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0


def test_json_lines_where_stderr_is_no_terminal(tmp_path, dense, text, capsys):
    argv = ["--calib-data", text, "--calib-samples", "2", "--calib-seqlen", "32", "--dry-run", "--search", "fisher"]
    assert main([str(dense("llama")), str(tmp_path / "out"), *argv]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["event"] for line in captured.err.splitlines()] == ["calibration"]
    assert json.loads(captured.out)["ranks_are_final"] is False


def test_a_default_group_size_that_gives_way_is_told(tmp_path, capsys):
    model = build_even(tmp_path / "model", num_attention_heads=6, num_key_value_heads=6, hidden_size=96)
    assert main([str(model), str(tmp_path / "out"), "--objective", "svd", "--search", "uniform"]) == 0
    assert "group size 3, because 4 does not divide 6 key-value heads" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_kill_in_the_middle_leaves_nothing(tmp_path, text, number, code):
    model = build_even(tmp_path / "model", num_hidden_layers=12)
    argv = [str(model), str(tmp_path / "out"), "--search", "uniform", "--calib-data", text, "--calib-samples", "50"]
    with forked.running(main, *argv) as process:
        for line in process.stderr:
            if '"layer"' in line:
                break
        assert [path.name for path in tmp_path.iterdir() if ".tmp-" in path.name]
        os.kill(process.pid, number)
        errors = process.stderr.read()
        assert process.wait() == code
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
