"""Commands in processes of their own that need no import: forked from this one, which has imported everything.

An interpreter that imports torch and transformers again takes ten seconds, a fork of this one nothing.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO, TextIOWrapper
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import IO, Any

Main = Callable[[], Any]


@dataclass(frozen=True)
class Forked:
    """A running fork; ``stderr`` is read while it writes."""

    pid: int
    stderr: IO[str]

    def wait(self) -> int:
        """Returns its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def running(main: Main, *arguments: object) -> Iterator[Forked]:
    """Runs ``main`` as a command line would, its output thrown away; kills nothing, so let it end or end it."""
    reading, writing = os.pipe()
    with open(os.devnull, "w") as nowhere, open(writing, "w") as errors:
        pid = _fork(main, arguments, {}, nowhere, errors)
    with open(reading) as stderr:
        yield Forked(pid, stderr)


def run(main: Main, *arguments: object, **environment: str) -> CompletedProcess[str]:
    """Runs ``main`` as a command line would, to its end."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        pid = _fork(main, arguments, environment, out, errors)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for file in (out, errors):
            file.seek(0)
        return CompletedProcess([main.__module__, *arguments], code, out.read(), errors.read())


def _fork(main: Main, arguments: tuple, environment: dict[str, str], out: IO[str], errors: IO[str]) -> int:
    """Returns the process id of the child, which never returns."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
        os.environ.update(environment)
        os.dup2(out.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = (
            TextIOWrapper(FileIO(file, "w", closefd=False), write_through=True) for file in (1, 2)
        )
        sys.argv = [main.__module__, *map(str, arguments)]
        code = _exit_code(main)
    finally:
        os._exit(code)


def _writing(file: int) -> IO[str]:
    return TextIOWrapper(FileIO(file, "w", closefd=False), write_through=True)


def _exit_code(main: Main) -> int:
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code
    except Exception:  # noqa: BLE001  # as an interpreter would
        traceback.print_exc()
        return 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return code or 0
