"""The commands of README and docs: our own parsers take all of them, and blocks that say nothing else run.

A block runs in a directory of its own, where ``MODEL``, ``OUT``, ``FILE`` and ``demo/`` are small and real: a random
model of four layers, what palu-compress makes of it, and a page of text. ``make`` is asked for its plan only,
``make -n``: executing it would install, or run this test. Why a block does not run stands in its info string.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from offline_compress import compress
from offline_compress.commands.compress import main as compress_main
from tests.project.documentation import ROOT, Block, blocks, commands_of, fenced_commands, lines_of, mentioned_commands
from tests.support.processes import forked

LANGUAGES = ("bash", "python", "text")
SHELL = set("|&;<>$`*")  # characters that need one
WRITES = ("palu-compress", "palu-convert")
KEEPS = {"--resume", "--overwrite"}


def cases(language: str) -> list:
    """The blocks of one language that run, those that say so marked as slow; equal ones once."""
    runnable = {block.text: block for block in blocks() if block.language == language and block.how in ("", "slow")}
    return [
        pytest.param(block, id=block.name, marks=[pytest.mark.slow] * (block.how == "slow"))
        for block in runnable.values()
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory, dense) -> Path:
    """The directory that every block gets a copy of."""
    directory = tmp_path_factory.mktemp("documentation")
    text = (ROOT / "demo/text/calibration.txt").read_text(encoding="utf-8")[:9000]
    for name in ("FILE", "calibration.txt", "demo/text/calibration.txt"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    for name in ("MODEL", "demo/model"):
        (directory / name).symlink_to(dense(num_hidden_layers=4), target_is_directory=True)
    compress(directory / "MODEL", directory / "OUT", calib_data=str(directory / "FILE"), calib_samples=2)
    return directory


def succeeds(ended: subprocess.CompletedProcess, command: object) -> None:
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"


@pytest.fixture
def run(template, tmp_path, monkeypatch):
    """``run(*command)`` in a copy of the template, with this checkout's programs on the path."""
    here = tmp_path / "here"
    shutil.copytree(template, here, symlinks=True)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT)}

    def run(*command: str) -> None:
        ended = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=500)
        succeeds(ended, command)

    monkeypatch.chdir(here)
    return run


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.name)
def test_a_block_says_what_it_is(block: Block):
    assert block.language in LANGUAGES
    assert block.how in ("", "slow") or block.how.startswith("not-run: ") and len(block.how.split()) > 2
    if block.language == "python":
        compile(block.text, block.name, "exec")


@pytest.mark.parametrize("block", cases("bash"))
def test_blocks_of_shell_run(block: Block, run):
    """Line by line; a command that makes OUT finds none, as each of several ways to make it would for a reader."""
    for line in lines_of(block):
        words = commands_of(line)
        if words and words[0] in WRITES and not KEEPS & set(words):
            shutil.rmtree("OUT", ignore_errors=True)
        if words[:1] == ["palu-compress"] and not set(line) & SHELL:
            succeeds(forked.run(compress_main, *words[1:]), line)
        else:
            run("bash", "-c", line)


@pytest.mark.parametrize("block", cases("python"))
@pytest.mark.usefixtures("run")
def test_blocks_of_python_run(block: Block):
    if "compress(" in block.text:
        shutil.rmtree("OUT")
    succeeds(forked.run(partial(exec, block.text, {"__name__": "__main__"})), block.name)


def test_parsers_take_every_command():
    fenced = [words for words in fenced_commands() if words[0] != "make"]
    mentions = [[*words, "--help"] for words in mentioned_commands() if words[0] not in ("make", "vllm")]
    assert len(fenced) > 30 and len(mentions) > 20
    wrong = ["palu-compress MODEL OUT --no-such-option", "palu-doctor --no-such-option --help"]
    command = [sys.executable, "-m", "tests.project.parse_commands"]
    ended = subprocess.run(
        command,
        input=json.dumps(fenced + mentions + [each.split() for each in wrong]),
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    refused = json.loads(ended.stdout.splitlines()[-1])
    assert [sentence for command, sentence in refused.items() if command not in wrong] == []
    assert all("no-such-option" in refused[command] for command in wrong), "a wrong option was not found"


def test_make_knows_every_target():
    targets = {tuple(words[1:]) for words in fenced_commands() + mentioned_commands() if words[0] == "make"}
    assert len(targets) > 5
    for target in targets:
        planned = subprocess.run(["make", "-n", *target], cwd=ROOT, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr
