"""What is known of a checkpoint once its tensors are written."""

from dataclasses import dataclass
from typing import Any

from offline_compress.factors.outcome import Outcome
from palu_vllm.format.config import PaluConfig
from palu_vllm.format.kv import KV


@dataclass(frozen=True)
class WrittenLayer:
    """How exact K and V are, and the seconds that the layer took."""

    outcome: KV[Outcome]
    seconds: float

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "WrittenLayer":
        """From an entry of the journal."""
        key, value = (Outcome(*side) for side in entry["outcome"])
        return cls(KV(key, value), entry["seconds"])


@dataclass(frozen=True)
class Written:
    """``chosen`` is what the report says of ranks that were searched, ``search_seconds`` what layers took meanwhile.

    ``taken_over`` says how many layers an earlier run had finished, of the search and of the tensors.
    """

    palu: PaluConfig
    layers: list[WrittenLayer]
    chosen: dict[str, Any]
    search_seconds: list[float]
    taken_over: dict[str, int]
