"""Attention sinks and a window that rolls on, over latents, asked for when a server starts (StreamingLLM, Xiao et al.
2023, arXiv 2309.17453): ``{"palu": {"streaming_llm": {"start_size": 4, "recent_size": 1020}}}``.

The knobs have their published names. ``docs/concepts/sinks-and-window.md`` says what a query sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class StreamingLLM:
    """What a request keeps beside the token that is computed: ``start_size`` tokens of its start and the last
    ``recent_size``. With ``enable_pos_shift`` positions are those within what is kept, else those of the text.
    """

    start_size: int
    recent_size: int
    enable_pos_shift: bool = True

    @classmethod
    def asked(cls, value: Any) -> Self:
        """Of a JSON object. Raises ValueError with one sentence for another or a bad value, or a missing size."""
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or not {*names[:2]} <= {*value} <= {*names}:
            raise ValueError(
                f"--additional-config has streaming_llm={value!r} for palu; "
                f"expected start_size and recent_size, and if wanted enable_pos_shift."
            )
        for name in names[:2]:
            if not isinstance(value[name], int) or isinstance(value[name], bool) or value[name] < 1:
                raise ValueError(f"streaming_llm has {name}={value[name]!r}; expected a number of tokens from 1 on.")
        if not isinstance(value.get(names[2], True), bool):
            raise ValueError(f"streaming_llm has {names[2]}={value[names[2]]!r}; expected true or false.")
        return cls(**value)

    @property
    def window(self) -> int:
        """Tokens of the window, that of the query among them."""
        return self.recent_size + 1

    @property
    def operands(self) -> dict[str, Any]:
        """By their names in ``LayerShape``."""
        return {"num_sinks": self.start_size, "shift_sinks": self.enable_pos_shift}
