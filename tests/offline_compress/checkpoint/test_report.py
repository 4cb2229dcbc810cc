import json
import sys

import pytest

from offline_compress import compress
from offline_compress.checkpoint.provenance import model_digest
from offline_compress.commands.command import cache_sentence
from offline_compress.model.source import open_source
from palu_vllm.format.checkpoint import iterate_tensors
from tests.support.tiny_models import byte_tokenizer, edit_config

SVD = {"objective": "svd", "search": "uniform"}


@pytest.mark.parametrize("value_path", ["fused", "factored", "auto"])
def test_bytes_of_both_value_paths_and_auto_takes_the_smaller(tmp_path, dense, value_path):
    report = compress(dense("llama"), tmp_path / "out", value_path=value_path, **SVD)
    assert report["value_path"] == ("factored" if value_path == "auto" else value_path)
    tensors = dict(iterate_tensors(tmp_path / "out"))
    real = sum(t.nbytes for name, t in tensors.items() if name.endswith((".o_proj.weight", ".v_up")))
    assert report["value_path_bytes"][report["value_path"]] == real


def test_auto_takes_fused_where_that_is_smaller(tmp_path, dense):
    report = compress(dense("llama"), tmp_path / "out", value_path="auto", rank_ratio=0.25, **SVD)
    assert report["value_path_bytes"]["fused"] < report["value_path_bytes"]["factored"]
    assert report["value_path"] == "fused"


def test_the_file_is_what_is_returned(tmp_path, dense):
    report = compress(dense("llama"), tmp_path / "out", **SVD)
    assert json.loads((tmp_path / "out" / "palu_report.json").read_text()) == report
    wanted = "dense_bytes_per_token bytes_per_token rank_k rank_v relative_error_k relative_error_v"
    assert set(wanted.split()) | {"peak_memory_bytes", "seconds", "provenance"} <= report.keys()
    assert report["peak_memory_bytes"] >= report["baseline_memory_bytes"] > 0


def test_provenance_names_command_versions_and_digests(tmp_path, dense):
    origin = compress(dense("llama"), tmp_path / "out", **SVD)["provenance"]
    assert origin["argv"] == sys.argv
    assert origin["packages"]["torch"]
    assert origin["model_sha256"] == model_digest(open_source(str(dense("llama"))))
    assert origin["calibration"] == "none"


def test_the_model_digest_follows_every_file(own_dense):
    before = model_digest(open_source(str(own_dense)))
    edit_config(own_dense, comment="another")
    assert model_digest(open_source(str(own_dense))) != before


def test_no_plot_without_matplotlib(tmp_path, dense, monkeypatch):
    compress(dense("llama"), tmp_path / "with", **SVD)
    assert (tmp_path / "with" / "palu_report.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    compress(dense("llama"), tmp_path / "without", **SVD)
    assert not (tmp_path / "without" / "palu_report.png").exists()


@pytest.mark.parametrize(("dtype", "size", "served"), [("float32", 4, "bfloat16"), ("float16", 2, "float16")])
def test_bytes_of_the_dtype_that_is_served(tmp_path, dense, dtype, size, served):
    """vLLM serves float32 in 16 bits unless it is told otherwise."""
    report = compress(dense("llama"), tmp_path / "out", dtype=dtype, group_size=4, **SVD)
    numbers = sum(report["rank_k"] + report["rank_v"])  # a model of four heads has one group
    assert report["bytes_per_token"] == size * numbers
    assert (report["served_dtype"], report["served_bytes_per_token"]) == (served, 2 * numbers)
    assert report["served_dense_bytes_per_token"] * size == 2 * report["dense_bytes_per_token"]
    both = f"with {2 * numbers} bytes instead of" in cache_sentence(report)
    in_card = f"; {2 * numbers} instead of" in (tmp_path / "out" / "README.md").read_text()
    assert both == in_card == (dtype == "float32")


def test_a_tokenizer_with_more_tokens_than_rows_is_told(tmp_path, own_dense):
    rows, events = json.loads((own_dense / "config.json").read_text())["vocab_size"], []
    byte_tokenizer(rows + 3).save_pretrained(own_dense)
    report = compress(own_dense, tmp_path / "out", on_event=events.append, **SVD)
    (note,) = report["notes"]
    assert f"the tokenizer has {rows + 3} tokens and the model only {rows} rows" in note
    assert [event["text"] for event in events if event["event"] == "note"] == [note]


def test_the_card_says_what_was_done(tmp_path, dense):
    report = compress(dense("llama"), tmp_path / "out", **SVD)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{report['bytes_per_token']} bytes instead of {report['dense_bytes_per_token']}" in card
    assert "| objective, rank search | svd, uniform |" in card
