"""How far a long run is, and about how long it still takes, on standard error."""

import sys
import time


class Progress:
    """``total`` steps, of which those that were there already cost nothing."""

    def __init__(self, total: int) -> None:
        self.total, self.at, self.measured = total, 0, 0
        self.started = time.perf_counter()

    def step(self, name: str, kept: bool) -> None:
        """One step is done; ``kept`` if it was there already."""
        self.at += 1
        self.measured += not kept
        print(f"[{self.at}/{self.total}] {name}: {self._words(kept)}", file=sys.stderr, flush=True)

    def _words(self, kept: bool) -> str:
        if kept:
            return "kept"
        spent = time.perf_counter() - self.started
        left = spent / self.measured * (self.total - self.at)
        return f"{spent:.0f} s so far, about {left / 60:.1f} min left"
