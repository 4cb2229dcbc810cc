"""Kinds of calibration files: each is read rightly, or refused in one sentence with nothing left behind."""

import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from offline_compress.calibration.mixture import counts, ingredients
from offline_compress.calibration.samples import load_samples
from offline_compress.calibration.text import Chat, read_documents
from offline_compress.commands.compress import main, parse_options
from offline_compress.run.errors import CompressionError

ONE, TWO = "Größe, the first.", "a second\nwith two lines"
ROWS = [{"text": ONE, "id": 1}, {"text": TWO, "id": 2}]
MESSAGES = [{"role": "user", "content": "Ask?"}, {"role": "assistant", "content": "Yes."}]


def lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def table(**columns: list[Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


TEXT = f"{ONE}\n{TWO}".encode()
CSV = f'id,text\n1,"{ONE}"\n2,"{TWO}"\n'.encode()
BOM = b"\xef\xbb\xbf"
READ = {
    "plain.txt": (TEXT, [TEXT.decode()]),
    "unknown.md": (TEXT, [TEXT.decode()]),
    "no_suffix": (TEXT, [TEXT.decode()]),
    "mark.txt": (BOM + TEXT, [TEXT.decode()]),
    "windows.txt": (b"a\r\nb", ["a\nb"]),
    "lines.jsonl": (lines(ROWS), [ONE, TWO]),
    "LINES.JSONL": (lines(ROWS), [ONE, TWO]),
    "lines.ndjson": (lines(ROWS), [ONE, TWO]),
    "mark.jsonl": (BOM + lines(ROWS), [ONE, TWO]),
    "gaps.jsonl": (b"\n\n" + lines(ROWS) + b"\n  \n", [ONE, TWO]),
    "content.jsonl": (lines([{"content": ONE}, {"content": TWO}]), [ONE, TWO]),
    "none.jsonl": (lines([{"text": None}, {"text": "  "}, *ROWS]), [ONE, TWO]),
    "surrogates.jsonl": (rb'{"text": "a \ud83d\ude42"}', ["a 🙂"]),
    "chats.jsonl": (lines([{"messages": MESSAGES}]), [Chat(MESSAGES, None)]),
    "tools.jsonl": (lines([{"messages": MESSAGES, "tools": [{"a": 1}]}]), [Chat(MESSAGES, [{"a": 1}])]),
    "list.json": (json.dumps(ROWS).encode(), [ONE, TWO]),
    "List.Json": (json.dumps(ROWS, indent=2).encode(), [ONE, TWO]),
    "texts.json": (BOM + json.dumps([ONE, TWO]).encode(), [ONE, TWO]),
    "object.json": (json.dumps(ROWS[0]).encode(), [ONE]),
    "lines.json": (lines(ROWS), [ONE, TWO]),
    "rows.csv": (CSV, [ONE, TWO]),
    "rows.CSV": (BOM + CSV, [ONE, TWO]),
    "rows.tsv": (f"content\tid\n{ONE}\t1\n".encode(), [ONE]),
    "rows.parquet": (table(id=[1, 2], text=[ONE, TWO]), [ONE, TWO]),
    "content.parquet": (table(content=[ONE, None, TWO]), [ONE, TWO]),
    "chats.parquet": (table(messages=[MESSAGES]), [Chat(MESSAGES, None)]),
    "plain.txt.gz": (gzip.compress(TEXT), [TEXT.decode()]),
    "lines.jsonl.GZ": (gzip.compress(lines(ROWS)), [ONE, TWO]),
    "rows.parquet.gz": (gzip.compress(table(text=[ONE, TWO])), [ONE, TWO]),
    "plain.txt.zst": (zstandard.compress(TEXT), [TEXT.decode()]),
    "Lines.Jsonl.Zst": (zstandard.compress(lines(ROWS)), [ONE, TWO]),
    "rows.csv.zst": (zstandard.compress(CSV), [ONE, TWO]),
    "rows.parquet.zst": (zstandard.compress(table(text=[ONE, TWO])), [ONE, TWO]),
}  # fmt: skip
REFUSED = {
    "surrogate.jsonl": (rb'{"text": "a \ud83d"}', "line 1 of {} has half of a character (a lone surrogate); correct"),
    "nul.txt": (b"a\0b", "{} has NUL bytes, so it is no text; give"),
    "nul.jsonl": (rb'{"text": "a\u0000"}', "line 1 of {} has NUL bytes"),
    "utf16.txt": ("text".encode("utf-16"), "calibration data {} cannot be read ("),
    "latin.csv": ("text\nGröße\n".encode("latin-1"), "calibration data {} cannot be read ("),
    "empty.txt": (b"", "{} has 0 tokens"),
    "white.txt": (b" \n\t \n" * 999, "{} has 0 tokens"),
    "white.jsonl": (lines([{"text": "   "}] * 99), "{} has 0 tokens"),
    "bytes.parquet": (table(text=[b"abc"]), "row 1 of {} has a 'text' that is not a string but bytes; name another"),
    "numbers.parquet": (table(text=[1, 2]), "row 1 of {} has a 'text' that is not a string but int;"),
    "lists.parquet": (table(text=[[1, 2]]), "row 1 of {} has a 'text' that is not a string but list;"),
    "column.parquet": (table(body=["x"]), "has no field 'text' or 'content' or 'messages'; it has body, name one with"),
    "damaged.parquet": (b"PAR1 nothing", "{} is not a readable parquet file ("),
    "column.csv": (b"body\nx\n", "row 1 of {} has no field 'text'"),
    "broken.jsonl": (b'{"text": ', "line 1 of {} is not a JSON object ("),
    "number.json": (b"[3]", "entry 1 of {} is neither an object nor a text"),
    "damaged.txt.gz": (gzip.compress(TEXT * 99)[:60], "calibration data {} cannot be read ("),
    "false.txt.gz": (TEXT, "calibration data {} cannot be read ("),
    "false.jsonl.zst": (TEXT, "calibration data {} cannot be read ("),
    "packed.zip": (b"PK\x03\x04\x00\x00", "{} has NUL bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read_rightly(tmp_path, name):
    content, documents = READ[name]
    (tmp_path / name).write_bytes(content)
    assert list(read_documents(str(tmp_path / name))) == documents


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence_with_nothing_left(tmp_path, dense, capsys, name):
    content, words = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    argv = [str(dense("llama")), str(tmp_path / "out"), "--search", "uniform", "--calib-data", str(path)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert words.format(path) in said
    assert said.startswith("palu-compress: ") and said.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("content", "documents"), [(TEXT, [TEXT.decode()]), (lines(ROWS), [ONE, TWO])])
def test_a_pipe_is_read_by_what_it_says(tmp_path, content, documents):
    """As a shell's ``<(zcat x.gz)`` gives it."""
    os.mkfifo(tmp_path / "63")
    writer = threading.Thread(target=(tmp_path / "63").write_bytes, args=[content])
    writer.start()
    assert list(read_documents(str(tmp_path / "63"))) == documents
    writer.join()


def test_a_field_by_name(tmp_path):
    (tmp_path / "data.csv").write_text("text,body\nnot this,but this\n")
    assert list(read_documents(str(tmp_path / "data.csv"), "body")) == ["but this"]
    with pytest.raises(CompressionError, match="has no field 'missing'; it has text, body, name one with"):
        list(read_documents(str(tmp_path / "data.csv"), "missing"))


def samples(model: Path, *data: str, count: int = 10):
    return load_samples(data if len(data) > 1 else data[0], model, 300, count, 8, seed=0)


def test_chats_are_rendered_by_the_template_of_the_model(tmp_path, dense):
    """The tiny model's writes a line for each message; a byte is a token."""
    (tmp_path / "chat.jsonl").write_bytes(lines([{"messages": MESSAGES}]))
    (tmp_path / "same.txt").write_text("user: Ask?\nassistant: Yes.\n")
    chat, text = (samples(dense("llama"), str(tmp_path / name)).tokens for name in ("chat.jsonl", "same.txt"))
    assert chat.tolist() == text.tolist() and chat.shape == (3, 8)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no user first') }}"])
def test_chats_that_no_template_renders(tmp_path, own_dense, template):
    (own_dense / "chat_template.jinja").unlink()
    if template:
        (own_dense / "chat_template.jinja").write_text(template)
    (tmp_path / "chat.jsonl").write_bytes(lines([{"messages": MESSAGES}]))
    words = "refuses .no user first.; correct the file" if template else "the model has no chat template; give plain"
    with pytest.raises(CompressionError, match=words):
        samples(own_dense, str(tmp_path / "chat.jsonl"))


def test_a_mixture_has_its_fractions(tmp_path, dense):
    for name, letter in (("a.txt", "a"), ("b.txt", "b")):
        (tmp_path / name).write_text(letter * 4000)
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    mixed = samples(dense("llama"), f"{a}=0.7", f"{b}=0.3")
    firsts = mixed.tokens[:, -1].tolist()
    only = samples(dense("llama"), a).tokens[0, -1].item()
    assert firsts.count(only) == 7 and len(firsts) == 10 and firsts != sorted(firsts)
    assert mixed.name == "a.txt (0.7) + b.txt (0.3)"
    assert samples(dense("llama"), a, b).name == "a.txt (0.5) + b.txt (0.5)"
    with pytest.raises(CompressionError, match="^1 samples of mixed calibration data leave none for one of them; give"):
        samples(dense("llama"), f"{a}=0.7", f"{b}=0.3", count=1)


def test_too_little_of_one_keeps_the_fractions():
    assert counts([0.7, 0.3], [100, 100], 10) == [7, 3]
    assert counts([0.5, 0.5], [100, 2], 10) == [2, 2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a=0.5", "b"], "some calibration data has a fraction and some has none; give all of them, or none."),
        (["a=0.5", "b=0.6"], "the fractions of calibration data add up to 1.1; expected 1, each above 0."),
        (["a=1.5", "b=-0.5"], "the fractions of calibration data add up to 1; expected 1, each above 0."),
        (["a=nan", "b=1"], "the fractions of calibration data add up to nan; expected 1, each above 0."),
    ],
)
def test_fractions_that_make_no_sense(words, sentence):
    with pytest.raises(CompressionError) as refused:
        ingredients(words)
    assert str(refused.value) == sentence


def test_a_file_may_be_called_like_a_fraction(tmp_path):
    path = tmp_path / "epsilon=0.5"
    path.write_text("text")
    assert ingredients(str(path)) == [(str(path), 1.0)]


@pytest.mark.parametrize(
    "line",
    [
        "M OUT --calib-data a=0.5 b=0.5",
        "--calib-data a=0.5 b=0.5 M OUT",
        "M --calib-data a=0.5 b=0.5 OUT",
        "--model_id M OUT --calib-data a=0.5 --calib-data b=0.5",
    ],
)
def test_paths_may_stand_before_and_behind_the_data(line):
    options = parse_options(line.split())
    assert (options.model, options.out, options.calib_data) == ("M", Path("OUT"), ("a=0.5", "b=0.5"))


def test_one_file_is_one_word():
    assert parse_options(["--calib-data", "F", "M", "OUT"]).calib_data == "F"
    assert parse_options(["M", "OUT", "--calib-data", "F", "--calib-field", "body"]).calib_field == "body"
