"""What a run has finished, in files that appear complete or not at all, so that it can go on after ``kill -9``.

Every piece is JSON; Python writes float64 in the fewest digits that give it back exactly.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_compress.run.errors import CompressionError
from offline_compress.run.memory import release_freed_memory

MADE_FROM = "made_from.json"


def write_at_once(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON and puts it on the disk before it gets its name."""
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@dataclass(frozen=True)
class Journal:
    """Finished pieces in ``directory``: results by name, and one entry per layer of a pass over them."""

    directory: Path

    def section(self, name: str) -> "Journal":
        """A journal of its own, for one pass."""
        (self.directory / name).mkdir(parents=True, exist_ok=True)
        return Journal(self.directory / name)

    def layers(self) -> list[Any]:
        """The entries of the layers that are finished, from the first on."""
        entries: list[Any] = []
        while (path := self._layer(len(entries))).exists():
            entries.append(json.loads(path.read_text(encoding="utf-8")))
        return entries

    def add_layer(self, layer: int, entry: Any) -> None:
        """From now on ``layer`` is finished."""
        write_at_once(self._layer(layer), entry)

    def over_layers(
        self, number: int, compute: Callable[[int], dict[str, Any]], told: Callable[[int, dict[str, Any]], None]
    ) -> list[dict[str, Any]]:
        """The entries of all layers, with the ``seconds`` that each took: ``compute(layer)`` of those that are missing.

        ``told(layer, entry)`` is called behind each of them, when it is finished.
        """
        for layer in range(len(self.layers()), number):
            began = time.monotonic()
            entry = compute(layer)
            entry |= {"seconds": round(time.monotonic() - began, 6)}
            self.add_layer(layer, entry)
            release_freed_memory()
            told(layer, entry)
        return self.layers()

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of ``compute()``, or what it was when a run before this one came so far."""
        path = self.directory / f"{name}.json"
        if not path.exists():
            write_at_once(path, compute())
        return json.loads(path.read_text(encoding="utf-8"))

    def _layer(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:05d}.json"


def open_journal(directory: Path, made_from: dict[str, Any]) -> Journal:
    """The journal of a run on ``made_from``, JSON that says all that decides its output; empty where there is none.

    Raises CompressionError where the one that is there belongs to a run on something else.
    """
    path = directory / MADE_FROM
    if not path.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_at_once(path, made_from)
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != made_from:
        raise CompressionError(
            f"{directory.parent} holds a run with {difference(before, made_from)}; resume with the options, model and "
            "data that it began with, or delete it."
        )
    return Journal(directory)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing that is not the same: ``rank_ratio 0.5, now 0.25``."""
    name = next(name for name in before | now if before.get(name) != now.get(name))
    old, new = before.get(name), now.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
        return difference(old, new)
    return f"{name} {old}, now {new}"
