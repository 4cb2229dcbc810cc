"""What the commands of this package share: exit codes and one sentence for everything that went wrong."""

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from offline_compress.run.errors import CompressionError


def run_command(name: str, action: Callable[[], None], interrupted: str) -> int:
    """Runs ``action``; returns 0, 2 for input that is refused, 130 where the user interrupted.

    SIGTERM ends it as an exception, so that unfinished output is removed.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        action()
    except (ValueError, OSError) as error:
        if not isinstance(error, CompressionError) and not isinstance(error, _refusals()):
            raise
        return _fail(name, str(error), 2)
    except KeyboardInterrupt:
        return _fail(name, f"interrupted; {interrupted}", 130)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def cache_sentence(report: dict[str, Any]) -> str:
    """Returns what a token costs, in the dtype of the checkpoint and in that of a server where they differ."""
    sentence = (
        f"{report['bytes_per_token']} bytes of KV cache per token instead of "
        f"{report['dense_bytes_per_token']} ({report['compression']:.2f}x)"
    )
    if report["served_dtype"] == report["dtype"]:
        return sentence
    return (
        f"{sentence} in {report['dtype']}; vLLM serves in {report['served_dtype']} unless --dtype says otherwise, "
        f"with {report['served_bytes_per_token']} bytes instead of {report['served_dense_bytes_per_token']}"
    )


def serve_command(directory: Path) -> str:
    """Returns the line for a shell that serves a checkpoint."""
    return f"vllm serve {shlex.quote(str(directory))} --attention-backend palu"


def _refusals() -> tuple[type[Exception], ...]:
    """Imported only now, because it brings torch with it and ``--help`` shall be quick."""
    from palu_vllm.format.checkpoint import CheckpointError

    return CheckpointError, OSError


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _fail(name: str, sentence: str, code: int) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return code
