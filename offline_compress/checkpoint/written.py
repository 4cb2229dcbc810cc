"""What is known of a checkpoint once its tensors are written."""

from dataclasses import dataclass
from typing import Any

from offline_compress.factors.layer import LayerOutcome, Outcome
from palu_vllm.format.config import PaluConfig


@dataclass(frozen=True)
class WrittenLayer:
    """``seconds`` are those of :mod:`offline_compress.run.stopwatch`."""

    outcome: LayerOutcome
    seconds: dict[str, float]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "WrittenLayer":
        """From :meth:`entry`."""
        return cls(LayerOutcome(*(Outcome(*side) for side in entry["outcome"])), entry["seconds"])

    def entry(self) -> dict[str, Any]:
        """For a journal."""
        return {"outcome": self.outcome, "seconds": self.seconds}


@dataclass(frozen=True)
class Written:
    """``chosen`` is what the report says of ranks that were searched, ``search_seconds`` what layers took meanwhile.

    ``taken_over`` says how many layers an earlier run had finished, of the search and of the tensors.
    """

    palu: PaluConfig
    layers: list[WrittenLayer]
    chosen: dict[str, Any]
    search_seconds: list[dict[str, float]]
    taken_over: dict[str, int]
