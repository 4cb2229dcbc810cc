"""Other commands of the repository, run in processes of their own, because an engine would keep its memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.provenance import ROOT
from benchmarks.common.shipped import CALIBRATION, HELD_OUT, MODEL

# threads that wait for others leave the cores to them, as they should on a busy machine
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class CommandError(RuntimeError):
    """A command failed. The message is the last line that it printed."""


def run(module: str, *arguments: object, quiet: bool = True) -> str:
    """Runs ``python -m MODULE`` and returns what it prints. Raises CommandError if it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    shown = None if not quiet else subprocess.PIPE
    environment = PATIENT | os.environ
    done = subprocess.run(command, stdout=shown, stderr=shown, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise CommandError((done.stderr or f"{module} failed").strip().splitlines()[-1])
    return done.stdout or ""


def compress(
    out: Path, *options: object, model: Path = MODEL, calibration: Path = CALIBRATION, quiet: bool = True
) -> dict[str, Any]:
    """Runs ``palu-compress`` with ``options`` and returns its report. Raises CommandError if it refuses."""
    run(
        "offline_compress", model.resolve(), out.resolve(), "--calib-data", calibration.resolve(), *options, quiet=quiet
    )
    return json.loads((out / "palu_report.json").read_text(encoding="utf-8"))


def calibrate(
    out: Path, *options: object, model: Path = MODEL, calibration: Path = CALIBRATION, quiet: bool = True
) -> dict[str, Any]:
    """Runs ``palu-calibrate`` with ``options`` and returns its report. Raises CommandError if it refuses."""
    arguments = (model.resolve(), out.resolve(), "--calib-data", calibration.resolve(), *options)
    run("offline_compress.commands.calibrate", *arguments, quiet=quiet)
    return json.loads((out / "codec_report.json").read_text(encoding="utf-8"))


def perplexity(model: Path, *options: object, text: Path = HELD_OUT) -> dict[str, Any]:
    """What ``benchmarks.perplexity`` says of a model. Raises CommandError if it fails."""
    printed = run("benchmarks.perplexity", "--model", model.resolve(), "--text", text.resolve(), "--json", *options)
    return json.loads(printed.strip().splitlines()[-1])
