"""The command on a tiny model: every arm has a row, a second run measures nothing, two runs give the same numbers."""

import json
import sys

import pytest

from benchmarks.judge import __main__ as command
from benchmarks.judge import report
from offline_compress import compress
from tests.support.tiny_models import build_small, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_small(folder / "smollm2", "llama", head_dim=16)
    for kind in ("wiki", "news"):
        write_text(folder / f"{kind}_evaluation.txt")
    half = {"objective": "svd", "search": "uniform", "rank_ratio": 0.5}
    compress(folder / "smollm2", folder / "smollm2-palu" / "cut2", **half)
    return folder


def run(folder, out, monkeypatch, *more: str) -> dict:
    asked = ["--folder", folder, "--kinds", "wiki", "news", "--rows", 1, "--context", 80, "--prompts", 2,
             "--answer-tokens", 4, "--needle-contexts", "--arms", "dense", "int4", "kivi_2", "palu",
             "--out", out]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["judge", *map(str, asked), *more])
    command.main()
    return json.loads(out.read_text())


def test_rows_table_plot_and_page(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "judge.json"
    found = run(folder, out, monkeypatch)
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == ["dense", "int4_per_token_head", "kivi_2bit_r128", "palu_cut2"]
    assert rows["palu_cut2"]["times_fewer_bytes"] == 2 and rows["palu_cut2"]["kl"] > 0
    assert rows["dense"]["top1"] == 1 and set(rows["dense"]["by_kind"]) == {"wiki", "news"}
    assert "palu_cut2 | 2.00x" in capsys.readouterr().out
    assert out.with_suffix(".png").exists() and "KL by kind of text" in out.with_suffix(".html").read_text()
    again = run(folder, tmp_path / "again.json", monkeypatch)
    assert again["rows"] == found["rows"]
    monkeypatch.setattr(command, "Reference", None)
    assert run(folder, out, monkeypatch)["rows"] == found["rows"], "nothing is measured twice"


def test_the_table_is_in_order_of_bytes():
    measured = {"kl": 0.1, "kl_99": 1, "kl_999": 2, "top1": 0.9, "perplexity": 10, "perplexity_error": 1}
    rows = [{"arm": str(times), "times_fewer_bytes": times, "times_fewer_bytes_long": times, **measured}
            for times in (4.0, 2.0)]  # fmt: skip
    rows += [{"arm": "dense", "times_fewer_bytes": 1, "times_fewer_bytes_long": 1, **measured}, {"arm": "unfinished"}]
    assert [row["arm"] for row in report.ordered(rows)] == ["dense", "2.0", "4.0"]
    assert report.line(rows[0])[:4] == ["4.0", "4.00x", "4.00x", "0.1000"]
