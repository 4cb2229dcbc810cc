"""Rows of a result: written as they finish, and kept by a later run that asks the same."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common.output import write_result

Row = dict[str, Any]


class ResultFile:
    """Rows by arm, in a file that also says what they were measured on."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """Raises ValueError where the file has rows of other facts."""
        self.path, self.facts, self.rows = path, facts, dict[str, Row]()
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["facts"] != facts:
                raise ValueError(f"{path.name} was measured on something else; move it away, or ask as it was asked.")
            self.rows = {row["arm"]: row for row in content["rows"]}

    def has(self, arm: str, field: str) -> bool:
        return field in self.rows.get(arm, {})

    def add(self, arm: str, measured: Row) -> None:
        """Joins what was measured to the row of an arm, and writes the file."""
        self.rows[arm] = self.rows.get(arm, {"arm": arm}) | measured
        self.write()

    def write(self) -> None:
        write_result(self.path, {"rows": list(self.rows.values()), "facts": self.facts})
