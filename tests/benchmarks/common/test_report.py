"""The page of all reports: escaped text, tables with headings, pictures within it, and where it was measured."""

from markupsafe import Markup

from benchmarks.common.output import table
from benchmarks.common.report import Part, page


def test_text_is_escaped_unless_it_is_markup():
    part = Part("<h>", ["a & b"], head=["<c>"], rows=[["<d>", Markup("<small>e</small>")]])
    written = page("<title>", [part])
    assert "<h1>&lt;title&gt;</h1>" in written and "<h2>&lt;h&gt;</h2>" in written
    assert "<p>a &amp; b</p>" in written and "<th>&lt;c&gt;</th>" in written
    assert "<td>&lt;d&gt;</td><td><small>e</small></td>" in written


def test_rows_stand_out_below_groups_of_columns():
    part = Part(groups=[("", 1), ("both", 2)], head=["a", "b", "c"], rows=[[1, 2, 3], [4, 5, 6]], headlines=[1])
    written = page("t", [part])
    assert '<tr><th colspan="1"></th><th colspan="2">both</th></tr>' in written
    assert "<tr><td>1</td>" in written and '<tr class="headline"><td>4</td>' in written


def test_what_is_empty_is_left_out():
    written = page("t", [Part(paragraphs=["only this"])])
    assert not any(tag in written for tag in ("<h2>", "<table>", "<img", "<small>", "http"))
    about = {"command": ["python", "-m", "x"], "commit": "abc", "device": "a chip", "versions": {}}
    written = page("t", [Part("drawn", png=b"png")], about)
    assert '<img alt="drawn" src="data:image/png;base64,cG5n">' in written
    assert "python -m x, commit abc, a chip" in written


def test_table():
    assert table(["a", "b"], [[1, "x"], ["", 2.5]]) == "| a | b |\n|---|---|\n| 1 | x |\n|  | 2.5 |"
