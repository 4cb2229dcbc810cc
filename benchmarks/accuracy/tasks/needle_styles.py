"""How a needle is stated and asked for: the usual English one, one with random keys, and the shipped model's."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class NeedleStyle:
    """Templates around a haystack. ``{key}`` and ``{value}`` are drawn for every prompt, two words each."""

    before: str
    needle: str
    question: str
    answer: str
    stop: tuple[str, ...] = ()
    max_tokens: int = 32

    def filled(self, key: str, value: str) -> "NeedleStyle":
        parts = {name: getattr(self, name) for name in ("before", "needle", "question", "answer")}
        drawn = {name: text.replace("{key}", key).replace("{value}", value) for name, text in parts.items()}
        return NeedleStyle(**drawn, stop=self.stop, max_tokens=self.max_tokens)


NEEDLE_STYLES: Mapping[str, NeedleStyle] = {
    # github.com/gkamradt/LLMTest_NeedleInAHaystack
    "usual": NeedleStyle(
        before="",
        needle="\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n",
        question="\n\nQuestion: What is the best thing to do in San Francisco? Answer in the words of the text.\n"
        "Answer: The best thing to do in San Francisco is",
        answer="eat a sandwich and sit in Dolores Park on a sunny day",
    ),
    # demo/rows.py: what demo/model was trained to repeat
    "demo": NeedleStyle(
        before="",
        needle="\nThe token of {key} is {value}.\n",
        question="\nThe token of {key} is",
        answer="{value}.",
        stop=("\n",),
        max_tokens=8,
    ),
}


def needle_style(name: str) -> NeedleStyle:
    """One of ``NEEDLE_STYLES``, or a JSON file with its fields. Raises ValueError for any other."""
    if name in NEEDLE_STYLES:
        return NEEDLE_STYLES[name]
    known = ", ".join(NEEDLE_STYLES)
    if not Path(name).is_file():
        raise ValueError(f"--needle-style {name} is unknown; expected {known} or a JSON file.")
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        style = NeedleStyle(**(content | {"stop": tuple(content.get("stop", ()))}))
    except (ValueError, TypeError, AttributeError) as error:
        wanted = ", ".join(field.name for field in fields(NeedleStyle))
        raise ValueError(f"{name} is not a needle style ({error}); expected the fields {wanted}.") from error
    if style.answer.replace("{value}", "") == "" and "{value}" not in style.needle:
        raise ValueError(f"{name} has a needle without its answer.")
    return style


def bare(answer: str) -> str:
    """An answer without the punctuation at its end, for counting words."""
    return answer.rstrip(string.punctuation)
