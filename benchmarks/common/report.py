"""A report as one HTML page that needs nothing else: paragraphs, tables, and pictures within it."""

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True)
class Part:
    """A stretch of a page, top to bottom. What is empty is left out.

    ``groups`` are names over columns of the table, with how many each; rows of ``headlines`` stand out. A cell is text,
    escaped unless it is Markup.
    """

    heading: str = ""
    paragraphs: Sequence[str] = ()
    groups: Sequence[tuple[str, int]] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    headlines: Collection[int] = ()
    png: bytes | None = None


def page(title: str, parts: Sequence[Part], provenance: Mapping[str, Any] | None = None) -> str:
    """The whole page; ``provenance`` is its last line."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    template = environment.get_template("report.html.j2")
    return template.render(title=title, parts=parts, provenance=provenance)
