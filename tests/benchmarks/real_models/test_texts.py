"""Plain text of wiki markup, and articles of a dump."""

import sysconfig
from pathlib import Path

from benchmarks.real_models.texts import MODULES, articles, plain

MARKUP = """'''Lighthouse''' is a [[tower|tall tower]] at the [[sea]].<ref>someone</ref>
{{Infobox | a = {{nested}} }}
[[File:x.jpg|thumb|A [[tower]]]]
* a list
It has a [https://example.org light].

== References ==
none"""


def test_markup_leaves_prose():
    assert plain(MARKUP).split("\n\n") == [
        "Lighthouse is a tall tower at the sea.", "It has a light.",
    ]  # fmt: skip


def test_short_articles_and_redirects_are_left_out():
    page = "<title>{}</title><text bytes='1'>{}</text>"
    dump = page.format("A", "long " * 50) + page.format("B", "#REDIRECT [[A]] " * 50) + page.format("C", "short")
    assert [text.splitlines()[0] for text in articles(dump, shortest=100)] == ["A"]


def test_modules_are_there():
    assert all((Path(sysconfig.get_path("stdlib")) / f"{name}.py").exists() for name in MODULES)
