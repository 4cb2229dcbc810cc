"""Progress is told by a bar on a terminal, and by JSON lines elsewhere.

Events are dictionaries with a key ``event``: ``note``, ``checked``, ``calibration``, ``sharing`` (one per pair of
layers that is tried; each of these with a ``text``), ``fisher`` (one per sample), ``probe`` (one per layer, where there
is a budget), ``energy``, ``conditions`` or ``factors`` (one per layer, where ranks follow from them), ``step`` (of the
greedy search, about as many as it says) and ``layer`` (one per layer, with ranks, relative errors, seconds and resident
memory).
"""

import json
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
        yield lambda event: print(json.dumps(event), file=stream, flush=True)
        return
    bars = _Bars(stream)
    try:
        yield bars
    finally:
        bars.close()


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
