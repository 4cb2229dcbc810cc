"""A result file: rows appear as they are measured, and other facts are refused."""

import json

import pytest

from benchmarks.judge.rows import ResultFile


def test_a_later_run_goes_on(tmp_path):
    path = tmp_path / "result.json"
    first = ResultFile(path, {"rows": 1})
    first.add("int4", {"kl": 0.1})
    first.add("fp8", {"kl": 0.01})
    second = ResultFile(path, {"rows": 1})
    assert second.has("int4", "kl") and not second.has("int4", "needles") and not second.has("kivi", "kl")
    second.add("int4", {"needles": 1.0})
    content = json.loads(path.read_text())
    assert content["rows"] == [{"arm": "int4", "kl": 0.1, "needles": 1.0}, {"arm": "fp8", "kl": 0.01}]
    assert content["facts"] == {"rows": 1} and content["provenance"]["commit"]


def test_rows_of_other_texts_are_not_mixed_in(tmp_path):
    path = tmp_path / "result.json"
    ResultFile(path, {"rows": 1}).add("int4", {"kl": 0.1})
    with pytest.raises(ValueError, match="result.json was measured on something else; move it away"):
        ResultFile(path, {"rows": 2})
