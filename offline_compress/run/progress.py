"""Progress is told by a bar on a terminal, and by JSON lines elsewhere; both say how long the rest of a pass takes.

Events are dictionaries with a key ``event``: ``note``, ``checked``, ``calibration``, ``sharing`` (one per pair of
layers that is tried; each of these with a ``text``), ``fisher`` (one per sample), ``probe`` (one per layer, where there
is a budget) and ``trial`` (one per layer, of the best choices), ``energy``, ``conditions`` or ``factors`` (one per
layer, where ranks follow from them), ``step`` (of the greedy search, about as many as it says), ``row`` (of a text that
is judged) and ``layer`` (one per layer, with ranks, relative errors, seconds and resident memory).
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

OnEvent = Callable[[dict[str, Any]], None]


def ignore(_event: dict[str, Any]) -> None:
    """Listens to nothing."""


@contextmanager
def shown_on(stream: TextIO) -> Iterator[OnEvent]:
    """A listener that shows events on ``stream``."""
    if not stream.isatty():
        yield _Lines(stream)
        return
    bars = _Bars(stream)
    try:
        yield bars
    finally:
        bars.close()


class _Lines:
    """A line of JSON per event; repeated ones say how many seconds those of their kind will take."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock = stream, clock
        self._first: dict[str, tuple[int, float]] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if "of" in event:
            event = event | self._left(event["event"], event["number"], event["of"])
        print(json.dumps(event), file=self._stream, flush=True)

    def _left(self, kind: str, number: int, of: int) -> dict[str, float]:
        now = self._clock()
        first, began = self._first.setdefault(kind, (number, now))
        if number <= first:  # nothing has been timed yet
            return {}
        each = (now - began) / (number - first)
        return {"seconds_left": round(each * (of - number - 1), 1)}


class _Bars:
    """One bar per kind of repeated event."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._bars: dict[str, tqdm] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if "of" not in event:
            tqdm.write(event["text"], file=self._stream)
            return
        if kind not in self._bars:
            self._bars[kind] = tqdm(total=event["of"], desc=kind, unit=kind, file=self._stream)
        bar = self._bars[kind]
        bar.set_postfix(
            {key: _short(key, value) for key, value in event.items() if key not in ("event", "number", "of")}
        )
        bar.update()

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


def _short(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{value / 2**20:.0f}MiB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
