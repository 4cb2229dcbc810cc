"""The JSON file of a comparison: rows of a method and a budget, which an interrupted run finds again."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.provenance import provenance

Row = dict[str, Any]
NAMED = ("model", "text", "calib_data")  # files, of which the name is enough
NUMBERS = ("prompt_tokens", "new_tokens", "rows", "needles", "seed", "calib_samples", "tune_rows")
ASKED = ("lm_eval", "lm_eval_limit")  # recorded only if given
WORDED = ("needle_style", "ruler_style", "ruler_task", "map_lengths", "map_samples")


def settings_of(options: argparse.Namespace) -> Row:
    """What all rows of one file have in common."""
    given = {name: getattr(options, name) for name in (*NUMBERS, *WORDED) if hasattr(options, name)}
    given |= {name: getattr(options, name) for name in ASKED if getattr(options, name, None)}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: getattr(options, name).name for name in NAMED} | listed


class Results:
    """Rows by what identifies them, kept in ``path`` if there is one. Each row has its commit and its seconds."""

    def __init__(self, path: Path | None, settings: Row, identity: tuple[str, ...]) -> None:
        """Takes over the rows of the file. Raises ValueError if they were measured with other settings."""
        self.path, self.settings, self.identity = path, settings, identity
        self.facts, self.rows = provenance(), {}
        if path is not None and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["settings"] != settings:
                other = [name for name in settings if before["settings"].get(name) != settings[name]]
                raise ValueError(f"{path} has rows of other settings ({', '.join(other)}); give another --out.")
            self.rows = {self._key(row): row for row in before["rows"]}

    def _key(self, row: Row) -> tuple:
        return tuple(row[name] for name in self.identity)

    def get(self, row: Row) -> Row | None:
        """The row of the same identity."""
        return self.rows.get(self._key(row))

    def measure(self, row: Row, measured: Callable[[], Row]) -> Row:
        """Adds ``row`` with what is measured, and writes the file."""
        started = time.perf_counter()
        found = row | measured()
        found |= {"seconds": round(time.perf_counter() - started, 1), "commit": self.facts["commit"]}
        self.rows[self._key(row)] = found
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"settings": self.settings, "provenance": self.facts, "rows": list(self.rows.values())}
            self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return found
