"""A directory that appears complete or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from offline_compress.options import CompressionError


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


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """A new directory beside ``out`` that takes its place when the block ends well and is removed otherwise.

    Raises CompressionError if it cannot be made.
    """
    out = out.resolve()
    created = [path for path in out.parents if not path.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{out.name}.tmp-", dir=out.parent))
    except OSError as error:
        _remove_empty(created)
        raise CompressionError(f"{out} cannot be written ({error}); choose another output directory.") from error
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        _replace(out, staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(created)
        raise


def _remove_empty(created: list[Path]) -> None:
    """Removes parents that were made for this output, deepest first, as far as nobody else uses them."""
    with suppress(OSError):
        for path in created:
            path.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace(out: Path, staging: Path) -> None:
    """Puts ``staging`` in the place of ``out``; the old directory comes back if that fails."""
    if not out.exists():
        staging.rename(out)
        return
    retired = Path(tempfile.mkdtemp(prefix=f"{out.name}.tmp-", dir=out.parent))
    out.rename(retired)
    try:
        staging.rename(out)
    except BaseException:
        retired.rename(out)
        raise
    shutil.rmtree(retired)
