"""How a benchmark is asked for and what it leaves: a command line, JSON with provenance, tables and pictures."""

import argparse
import io
import json
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.common.provenance import ROOT, provenance

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

__all__ = ["pyplot"]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"


def command_line(module: str, about: str, result: str | None = None) -> argparse.ArgumentParser:
    """The parser of ``python -m MODULE``, with ``--out`` where it writes ``benchmarks/results/RESULT``.

    From here on SIGTERM ends the command as an exception would, so that it ends what it has started.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.splitlines()[0])
    if result:
        parser.add_argument("--out", type=Path, default=RESULTS / result, help="JSON file (default: the committed one)")
    return parser


def write_result(out: Path, content: dict[str, Any]) -> None:
    out.write_text(json.dumps(content | {"provenance": provenance()}, indent=1) + "\n", encoding="utf-8")


def say(row: dict[str, Any]) -> None:
    """One line of JSON on standard error, while more rows are measured."""
    print(json.dumps(row), file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def png_of(figure: Any) -> bytes:
    """PNG of a figure, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return buffer.getvalue()


def save(figure: Any, target: Path) -> None:
    """Writes a figure, cut to what it shows, and closes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, bbox_inches="tight")
    pyplot.close(figure)
