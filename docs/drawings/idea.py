"""This module draws the idea in one picture: ``python -m docs.drawings.idea`` writes ``docs/images/idea.png``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

OUT = Path(__file__).parents[1] / "images" / "idea.png"
KEY, VALUE, WEIGHT, INK, MUTED = "#3b6fb6", "#d9822b", "#eceff3", "#1f2933", "#6b7785"
TOKENS = 9
CACHE = 5.1  # where the cache begins, from the left


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = WEIGHT) -> None:
    """A weight matrix or a step, with its name inside."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=MUTED, lw=1))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A way that numbers take."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=MUTED, lw=1.3))


def cache(axes: Axes, middle: float, height: float, colour: str, text: str) -> None:
    """One column per cached token, as tall as the numbers that it takes."""
    for token in range(TOKENS):
        corner = (CACHE + token * 0.3, middle - height / 2)
        axes.add_patch(Rectangle(corner, 0.22, height, facecolor=colour, edgecolor="white", lw=0.5))
    axes.text(
        CACHE + TOKENS * 0.15, middle + height / 2 + 0.1, text, ha="center", va="bottom", fontsize=10, color=colour
    )


def begin(axes: Axes, y: float, title: str) -> None:
    """The title of a way, and the token that it begins with."""
    axes.text(0, y + 1.75, title, fontsize=13, weight="bold", color=INK)
    box(axes, 0, y - 0.35, 1.35, 0.7, "token\nin a layer", "white")
    for height in (0.7, -0.7):
        arrow(axes, (1.4, y + height / 4), (2.15, y + height))
        arrow(axes, (3.95, y + height), (CACHE - 0.1, y + height))


def dense(axes: Axes, y: float) -> None:
    """The ordinary cache: whole keys and values."""
    begin(axes, y, "An ordinary cache keeps whole keys and values")
    box(axes, 2.2, y + 0.25, 1.7, 0.9, "K projection")
    box(axes, 2.2, y - 1.15, 1.7, 0.9, "V projection")
    cache(axes, y + 0.72, 0.95, KEY, "keys, rotated (RoPE)")
    cache(axes, y - 0.72, 0.95, VALUE, "values")
    for height in (0.7, -0.7):
        arrow(axes, (7.9, y + height), (10.45, y + height / 3))
    box(axes, 10.5, y - 0.45, 1.5, 0.9, "attention")
    arrow(axes, (12.05, y), (12.55, y))
    box(axes, 12.6, y - 0.45, 1.8, 0.9, "output\nprojection")


def palu(axes: Axes, y: float) -> None:
    """The cache of latents: two thin matrices in the place of each projection."""
    begin(axes, y, "palu keeps latents: each projection is split into two thin matrices")
    box(axes, 2.2, y + 0.45, 1.7, 0.5, "k_down")
    box(axes, 2.2, y - 0.95, 1.7, 0.5, "v_down")
    cache(axes, y + 0.7, 0.3, KEY, "latents of keys")
    cache(axes, y - 0.7, 0.3, VALUE, "latents of values")
    arrow(axes, (7.9, y + 0.7), (8.15, y + 0.7))
    box(axes, 8.2, y + 0.25, 1.75, 0.9, "k_up and RoPE\nrebuild keys")
    arrow(axes, (10.0, y + 0.65), (10.45, y + 0.25))
    arrow(axes, (7.9, y - 0.7), (10.45, y - 0.25))
    box(axes, 10.5, y - 0.45, 1.5, 0.9, "attention")
    arrow(axes, (12.05, y), (12.55, y))
    box(axes, 12.6, y - 0.55, 1.8, 1.1, "output\nprojection\nwith v_up in it")


def main() -> None:
    figure, axes = pyplot.subplots(figsize=(11.5, 5.6))
    dense(axes, 4.75)
    palu(axes, 0.75)
    axes.text(CACHE + TOKENS * 0.15, -0.75, "what vLLM pages, shares and evicts", ha="center", fontsize=10, color=MUTED)
    axes.set(xlim=(-0.1, 14.5), ylim=(-1.0, 6.9))
    axes.axis("off")
    figure.savefig(OUT, dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
