"""A staged directory appears complete or not at all.

``OUT.tmp-work`` beside the output holds ``checkpoint``, which takes the output's place in the end, and ``state``, what
is needed to go on after a kill. The process that writes there holds a lock, which the system drops with the process.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from offline_compress.run.errors import CompressionError

CHECKPOINT, STATE, REPLACED, LOCK = "checkpoint", "state", "replaced", "lock"


def check_target(out: Path, inputs: list[Path], overwrite: bool) -> None:
    """Raises CompressionError where ``out`` must not or cannot be written."""
    resolved = out.resolve()
    for path in inputs:
        if path.resolve().is_relative_to(resolved):
            raise CompressionError(f"{out} holds the input {path}; choose another output directory.")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise CompressionError(f"{out} exists and is not a directory; choose another output directory.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise CompressionError(f"{out} exists and is not empty; choose another output directory or add --overwrite.")
    parent = next(path for path in resolved.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CompressionError(f"{parent} cannot be written to; choose another output directory.")


def work_directory(out: Path) -> Path:
    """Where the run that writes ``out`` works."""
    out = out.resolve()
    return out.with_name(f"{out.name}.tmp-work")


@contextmanager
def staged_directory(out: Path, resume: bool = False) -> Iterator[Path]:
    """A directory beside ``out`` that takes its place when the block ends well.

    Otherwise it is removed; with ``resume`` it stays, and is as it was left at the beginning. What else is needed to
    go on may be put into ``STATE`` beside it. Raises CompressionError if it cannot be made, is in use, or was left by
    a run that did not end and ``resume`` is not asked for.
    """
    out = out.resolve()
    created = [path for path in out.parents if not path.exists()]
    with _locked(out, created, resume) as work:
        try:
            (work / CHECKPOINT).mkdir(exist_ok=True)
            yield work / CHECKPOINT
            _replace(out, work)
            shutil.rmtree(work)
        except BaseException:
            if not resume:
                # the state last, so that nothing of a checkpoint is ever left without it
                shutil.rmtree(work / CHECKPOINT, ignore_errors=True)
                shutil.rmtree(work, ignore_errors=True)
                _remove_empty(created)
            raise


@contextmanager
def _locked(out: Path, created: list[Path], resume: bool) -> Iterator[Path]:
    """The work directory, which no other process uses meanwhile."""
    work = work_directory(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / LOCK).open("w")
    except OSError as error:
        _remove_empty(created)
        raise CompressionError(f"{out} cannot be written ({error}); choose another output directory.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CompressionError(f"another palu-compress is writing {out}; wait for it.") from error
        if not resume and (work / STATE).exists():
            raise CompressionError(
                f"{work} holds the work of a run that did not end; add --resume to go on with it, or delete it."
            )
        yield work


def _remove_empty(created: list[Path]) -> None:
    """Removes parents that were made for this output, deepest first, as far as nobody else uses them."""
    with suppress(OSError):
        for path in created:
            path.rmdir()


def _replace(out: Path, work: Path) -> None:
    """Puts the checkpoint in the place of ``out``; the old directory comes back if that fails."""
    if not out.exists():
        (work / CHECKPOINT).rename(out)
        return
    shutil.rmtree(work / REPLACED, ignore_errors=True)
    out.rename(work / REPLACED)
    try:
        (work / CHECKPOINT).rename(out)
    except BaseException:
        (work / REPLACED).rename(out)
        raise
