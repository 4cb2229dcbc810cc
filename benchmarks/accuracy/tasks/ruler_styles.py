"""The wording of RULER, and one that the shipped model was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RulerStyle:
    """RULER's own wording (github.com/NVIDIA/RULER, scripts/data/synthetic, Apache-2.0)."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    single: bool = False  # only for kinds that ask for one value of one key

    def type_of(self, published: str) -> str:
        """The kind of key or value that stands where RULER has ``published``."""
        return published

    def line(self, text: str) -> str:
        return f" {text}.\n"

    def needle_of(self, key: str, value: str, values: str) -> str:
        return self.line(f"One of the special magic {values} for {key} is: {value}")

    def ask(self, keys: list[str], values: str, several: bool) -> tuple[str, str]:
        """What stands before and after the haystack, the beginning of the answer included."""
        asked = ", ".join(keys[:-1]) + f", and {keys[-1]}" if len(keys) > 1 else keys[0]
        some, are = ("Some special magic", "are") if several else ("A special magic", "is")
        all_the = "are all the special magic" if several else "is the special magic"
        thing = values if several else values.removesuffix("s")
        front = (
            f"{some} {thing} {are} hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {thing} afterwards.\n"
        )
        back = (
            f"\nWhat {all_the} {thing} for {asked} mentioned in the provided text?"
            f" The special magic {thing} for {asked} mentioned in the provided text {are}"
        )
        return front, back

    def ask_variables(self, number: str, count: int) -> tuple[str, str]:
        front = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        back = (
            f"\nQuestion: Find all variables that are assigned the value {number} in the text above."
            f" Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
            f"assgined the value {number}, they are:"
        )
        return front, back


@dataclass(frozen=True)
class DemoStyle(RulerStyle):
    """Facts as in demo/rows.py."""

    max_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    single: bool = True

    def type_of(self, published: str) -> str:
        return "word pairs"

    def needle_of(self, key: str, value: str, values: str) -> str:
        return f"\nThe token of {key} is {value}.\n"

    def ask(self, keys: list[str], values: str, several: bool) -> tuple[str, str]:
        return "", f"\nThe token of {keys[0]} is"


RULER_STYLES: Mapping[str, RulerStyle] = {"published": RulerStyle(), "demo": DemoStyle()}
