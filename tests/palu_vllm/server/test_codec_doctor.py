"""``palu-doctor MODEL --codec OUT``: in forks of this process, and once as a user runs it."""

import json
import shutil
import subprocess

import pytest

from palu_vllm.format.codec.file import JSON, load_codec
from palu_vllm.server import codec_doctor
from palu_vllm.server.doctor import main
from tests.palu_vllm.server.test_doctor import DOCTOR
from tests.support.codecs.models import write_codec
from tests.support.processes import forked
from tests.support.serving import outside
from tests.support.tiny_models import write_text

CHECKS = ["vLLM", "plugin", "kernels", "codec", "model", "judge"]


@pytest.fixture(scope="module")
def codec(dense, tmp_path_factory):
    return write_codec(tmp_path_factory.mktemp("codecs") / "english", dense(), ((64, 3),), ((64, 4),))


def test_healthy_and_judged(dense, codec, tmp_path):
    text = write_text(tmp_path / "text.txt", words=400)
    command = [DOCTOR, dense(), "--codec", codec, "--text", text]
    ended = subprocess.run(command, capture_output=True, text=True, env=outside({}))
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    rows = dict((line[8:24].strip(), line[24:]) for line in ended.stdout.splitlines() if line.startswith("ok "))
    assert list(rows) == CHECKS
    assert "over codec slots on cpu" in rows["kernels"] and "3 bits in K and 4 in V" in rows["codec"]
    assert f"{load_codec(codec).bytes_per_token:,} bytes of KV cache per token" in rows["model"]
    assert rows["judge"].startswith("KL ") and "% same top token, perplexity" in rows["judge"]
    assert '"event": "row"' in ended.stderr and "checking judge" in ended.stderr


def test_without_a_text_nothing_is_judged(dense, codec):
    assert codec_doctor.codec_checks(str(codec), None)["judge"](dense()).startswith("not asked for; give --text FILE")


def test_the_codec_of_another_model(dense, codec):
    ended = forked.run(main, dense("qwen2"), "--codec", codec, "--json")
    report = json.loads(ended.stdout.splitlines()[-1])  # vLLM's warnings of this process come before
    assert ended.returncode == 1 and not report["ok"]
    assert [check["check"] for check in report["checks"]] == CHECKS[:5]
    assert "make one with `palu-calibrate" in report["checks"][-1]["detail"]


def test_a_codec_that_is_missing_or_damaged(dense, codec, tmp_path):
    ended = forked.run(main, dense(), "--codec", tmp_path / "none")
    assert ended.returncode == 1 and "FAILED  codec" in ended.stdout and "neither a directory nor" in ended.stdout
    copy = shutil.copytree(codec, tmp_path / "copy")
    (copy / JSON).write_text("{")
    ended = forked.run(main, dense(), "--codec", copy)
    assert ended.returncode == 1 and "FAILED  codec" in ended.stdout and "model   " not in ended.stdout


def test_a_text_that_is_too_short(dense, codec, tmp_path):
    (tmp_path / "short.txt").write_text("a word")
    with pytest.raises(ValueError, match="short.txt has .* give more text or shorter samples"):
        codec_doctor.codec_checks(str(codec), tmp_path / "short.txt")["judge"](dense())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--text", "FILE"], "--text judges a codec; give --codec DIR too."),
        (["--codec", "OUT", "--base", "MODEL"], "--base compares a compressed checkpoint with its model; leave it out"),
        (["--codec", "OUT", "--text", "/nowhere.txt"], "/nowhere.txt is not a file; expected a text."),
    ],
)
def test_options_that_make_no_sense(dense, options, sentence):
    ended = forked.run(main, dense(), *options)
    assert ended.returncode == 1 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"palu-doctor: {sentence}")


def test_a_directory_that_is_no_model(tmp_path, codec):
    ended = forked.run(main, tmp_path, "--codec", codec)
    assert ended.stderr == f"palu-doctor: {tmp_path} has no config.json; expected the directory of a model.\n"
