"""The command that compares: rows, tables, pictures, and runs that go on."""

import json

import pytest

from benchmarks.common.shipped import HELD_OUT
from benchmarks.methods import __main__ as command
from benchmarks.methods.compare.report import tables
from benchmarks.methods.options import parser
from tests.support.tiny_models import build_dense

METHODS = ("kivi", "snapkv", "matryoshkakv-pca")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return build_dense(tmp_path_factory.mktemp("compare") / "dense", num_hidden_layers=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(HELD_OUT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    return file


@pytest.fixture
def run(dense, text, monkeypatch):
    def run(which: str, *more, prompt: int = 100, needles: int = 0):
        flags = ["--model", dense, "--text", text, "--calib-data", text, "--calib-samples", 1, "--rows", 1]
        flags += ["--prompt-tokens", prompt, "--new-tokens", 6, "--needles", needles, *more]
        monkeypatch.setattr("sys.argv", ["methods", which, *map(str, flags)])
        command.main()

    return run


def test_compare_writes_rows_and_a_table(run, tmp_path, capsys):
    run("compare", "--budgets", "2,50", "--methods", ",".join(METHODS), "--out", tmp_path / "methods")
    written = json.loads((tmp_path / "methods.json").read_text())
    rows = written["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [("dense", 1.0)] + [
        (name, budget) for budget in (2.0, 50.0) for name in METHODS
    ]
    for row in rows[1:4]:
        assert row["bytes_at_prompt_end"] <= rows[0]["bytes_at_prompt_end"] / 2
    assert "unreachable" in rows[4] and written["provenance"] and all(row["commit"] for row in rows)
    out = capsys.readouterr()
    assert tables(rows) in out.out and "about 0.0 min left" in out.err
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("methods.png", "methods_bars.png"))
    page = (tmp_path / "methods.html").read_text()
    assert page.count("data:image/png") == 2 and page.count("not reached") == sum("unreachable" in r for r in rows)
    assert 'src="data:' in page and "http" not in page


def test_a_run_goes_on_where_it_stopped(run, tmp_path, capsys):
    out = tmp_path / "methods"
    run("compare", "--budgets", "2", "--methods", "kivi", "--out", out)
    file = out.with_suffix(".json")
    before = json.loads(file.read_text())
    before["rows"][1]["commit"] = "an earlier one"
    file.write_text(json.dumps(before))
    run("compare", "--budget", "2", "--methods", "kivi,snapkv", "--out", out)
    rows = json.loads(file.read_text())["rows"]
    assert rows[:2] == before["rows"] and rows[2]["method"] == "snapkv" and len(rows) == 3
    assert "kivi at 2x: kept" in capsys.readouterr().err
    run("compare", "--budgets", "2", "--methods", "kivi", "--rerun", "--out", out)
    again = json.loads(file.read_text())["rows"]
    assert again[1]["commit"] != "an earlier one" and again[2] == rows[2]
    with pytest.raises(SystemExit, match="--needle-map 3.0 is none of --budgets 4, 6"):
        run("compare", "--methods", "kivi", "--needle-map", 3)
    with pytest.raises(SystemExit, match=r"other settings \(prompt_tokens\)"):
        run("compare", "--methods", "kivi", "--out", out, prompt=90)


def test_questions_and_a_map_of_needles(run, tmp_path):
    """A model of random weights finds nothing, so that the shipped one is asked in test_retrieval."""
    out, more = tmp_path / "methods", ("--map-lengths", "200,300", "--needle-map", 2)
    run("compare", "--budgets", "2", "--methods", "snapkv", "--out", out, *more, prompt=450, needles=4)
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("recall", "needle", "ruler"))
    for row in rows:
        cells = [(cell["length"], cell["depth"]) for cell in row["needle_map"]]
        assert cells == [(length, depth) for length in (200, 300) for depth in (0, 25, 50, 75, 100)]
    assert (tmp_path / "methods_needles.png").stat().st_size > 1000
    assert (tmp_path / "methods.html").read_text().count("data:image/png") == 3


def test_tokens_or_bits_is_answered_at_equal_bytes(run, tmp_path):
    run("tokens-or-bits", "--budgets", "5", "--out", tmp_path / "bits", prompt=320)
    rows = json.loads((tmp_path / "bits.json").read_text())["rows"]
    assert len(rows) == 4 * 4 and (tmp_path / "bits.png").stat().st_size > 1000
    for pruning in ("SnapKV", "PyramidKV", "H2O", "StreamingLLM"):
        own = [row for row in rows if row["pruning"] == pruning]
        assert [row["bits"] for row in own] == [16, 8, 4, 2]
        kept = [row["tokens"] for row in own]
        assert kept == sorted(kept) and 3 * kept[0] < kept[1] < kept[2] <= kept[3] == 320
        whole = own[0]["bytes_at_prompt_end"] / own[0]["tokens"] * 320
        assert all(row["bytes_at_prompt_end"] <= whole / 5 for row in own)


def test_budgets_come_with_commas_or_spaces(capsys):
    for flags in (["--budgets", "4,6"], ["--budget", "4", "6"]):
        assert parser().parse_args(["compare", *flags]).budgets == (4.0, 6.0)
    with pytest.raises(SystemExit):
        parser().parse_args(["compare", "--budgets", "four"])
    assert "no numbers like 4,6" in capsys.readouterr().err


def test_unknown_methods_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.parser().parse_args(["compare", "--methods", "kivi,quest"])
    assert "unknown 'quest'" in capsys.readouterr().err


@pytest.mark.slow
def test_palu_is_compressed_for_the_budget_and_measured_the_same_way(run, tmp_path):
    """Runs ``palu-compress``."""
    more = ("--calib-samples", 2, "--out", tmp_path / "methods")
    run("compare", "--budgets", "2", "--methods", "palu", *more, prompt=450, needles=4)
    dense_row, palu = json.loads((tmp_path / "methods.json").read_text())["rows"]
    assert palu["setting"] == "palu-compress --target-compression 2"
    assert 0.4 < palu["bytes_at_prompt_end"] / dense_row["bytes_at_prompt_end"] <= 0.5
    assert palu["kl"] > 0 and 0 <= palu["recall"] <= 1
