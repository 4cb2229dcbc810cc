"""How long the parts of a layer take: :func:`measured` around the run, :func:`part` around work, :func:`lap` behind it.

Parts may lie within each other; time counts for the innermost one, so that the parts of a layer never exceed it. Where
nobody measures, a part costs nothing.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# load: weights from disk. activations: the samples between layers, from and to disk. run: the dense layer on samples.
# moment: their second moment. attention: what reads keys and values. fuse: v_up into o_proj. write: the checkpoint.
PARTS = ("load", "activations", "run", "moment", "attention", "svd", "refit", "fuse", "write")


class Stopwatch:
    """Seconds of every part since the last :meth:`take`."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._spent: Counter[str] = Counter()
        self._began = self._since = time.monotonic()

    def take(self) -> dict[str, float]:
        """Seconds in all as ``total`` and of every part, from now on none; parts that are open go on."""
        self._charge()
        spent = {"total": self._since - self._began} | {name: self._spent[name] for name in PARTS}
        self._spent.clear()
        self._began = self._since
        return {name: round(seconds, 6) for name, seconds in spent.items()}

    def enter(self, name: str) -> None:
        self._charge()
        self._open.append(name)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.monotonic()
        if self._open:
            self._spent[self._open[-1]] += now - self._since
        self._since = now


_WATCH: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def measured() -> Iterator[None]:
    """A stopwatch runs inside the block."""
    token = _WATCH.set(Stopwatch())
    try:
        yield
    finally:
        _WATCH.reset(token)


def lap() -> dict[str, float]:
    """Seconds in all, ``total``, and of every part since the last lap; nothing where nobody measures."""
    watch = _WATCH.get()
    return {} if watch is None else watch.take()


@contextmanager
def part(name: str) -> Iterator[None]:
    """Work that counts as ``name``, one of ``PARTS``."""
    watch = _WATCH.get()
    if watch is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()
