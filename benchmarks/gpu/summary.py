"""Which steps of a session passed, and how long each took: written again after every step, printed at the end.

``python -m benchmarks.gpu.summary STEPS.jsonl summary.json`` needs the standard library alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

TIMED_OUT = (124, 137)  # exit statuses of ``timeout``
WAITING = 3  # of the step that joins parts, while some have not arrived
LEFT_OUT = -1  # of a step that was not started, because the call's time was over


def outcome(status: int) -> str:
    if status in TIMED_OUT:
        return "timed out"
    return {0: "passed", WAITING: "waiting for parts", LEFT_OUT: "left out"}.get(status, "failed")


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """``steps`` have ``step``, ``status`` and ``seconds``."""
    rows = [{**step, "outcome": outcome(step["status"])} for step in steps]
    return {"passed": all(row["outcome"] == "passed" for row in rows), "steps": rows}


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{row['step']:28} {row['outcome']:18} {row['seconds']:7.1f} s of {row['limit']}" for row in found["steps"]
    ]
    return "\n".join([*lines, "all steps passed" if found["passed"] else "NOT all steps passed"])


def main() -> None:
    steps, out = map(Path, sys.argv[1:])
    found = summary([json.loads(line) for line in steps.read_text().splitlines()])
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
