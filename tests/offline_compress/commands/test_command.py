"""Exit codes and sentences of a command, whatever it does."""

import os
import signal
from pathlib import Path

import pytest

from offline_compress.commands.command import run_command, serve_command
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import CheckpointError


def ends_with(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("error", [CompressionError("no."), CheckpointError("no."), FileNotFoundError("no.")])
def test_what_is_refused_is_one_sentence(capsys, error):
    assert run_command("tool", ends_with(error), "nothing happened.") == 2
    assert capsys.readouterr().err == "tool: no.\n"


def test_an_interruption(capsys):
    assert run_command("tool", ends_with(KeyboardInterrupt()), "nothing happened.") == 130
    assert capsys.readouterr().err == "tool: interrupted; nothing happened.\n"


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyError("a defect"), RuntimeError("a defect")])
def test_a_defect_stays_visible(error):
    with pytest.raises(type(error), match="a defect"):
        run_command("tool", ends_with(error), "nothing happened.")


def test_sigterm_ends_the_action_as_an_exception():
    """So that unfinished output is removed on the way out; afterwards the signal means what it did."""
    cleaned, before = [], signal.getsignal(signal.SIGTERM)

    def action() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit, match="143"):
        run_command("tool", action, "nothing happened.")
    assert cleaned and signal.getsignal(signal.SIGTERM) is before


def test_success():
    done = []
    assert run_command("tool", lambda: done.append(1), "nothing happened.") == 0
    assert done == [1]


def test_a_path_with_spaces_is_quoted_for_the_shell():
    assert serve_command(Path("ou t ü")) == "vllm serve 'ou t ü' --attention-backend palu"
    assert serve_command(Path("out")) == "vllm serve out --attention-backend palu"
