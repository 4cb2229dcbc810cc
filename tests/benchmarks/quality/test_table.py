"""The judge and the tables of the quality benchmark."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.provenance import ROOT
from benchmarks.quality.arms import settings
from benchmarks.quality.held_out import Judge
from benchmarks.quality.plot import best, budget_table, palu_table, plot
from tests.support.tiny_models import build_small

ROWS = [
    {"arm": "dense", "bytes_per_token": 1000, "perplexity": 10.0, "kl": 0.0},
    {"arm": "fp8_e4m3 in vLLM", "bytes_per_token": 500, "perplexity": 10.1, "kl": None},
    {"arm": "palu", "budget": 10.0, "bits": "4/2", "bytes_per_token": 100, "perplexity": 10.8, "kl": 0.06},
    *(
        {"arm": "palu", "ratio": 0.5, "bits": bits, "rotation": rotation, "bytes_per_token": size, "perplexity": 10.5,
         "kl": kl}
        for bits, rotation, size, kl in (
            ("16", "none", 500, 0.01), ("4", "none", 130, 0.05), ("4", "hadamard", 130, 0.04),
        )
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    directory = build_small(tmp_path_factory.mktemp("dense") / "model", "llama")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def judge(dense):
    return Judge(dense, torch.randint(3, 97, (5, 48), generator=torch.Generator().manual_seed(0)))


def test_the_dense_model_does_not_diverge_from_itself(dense, judge):
    assert judge.score(dense)["kl"] == pytest.approx(0, abs=1e-4)


def test_perplexity_is_that_of_the_losses(dense, judge):
    rows = torch.cat(judge.batches)
    loss = dense(rows, labels=rows).loss.item()
    assert judge.score(dense)["perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)


def test_the_best_at_a_budget_has_the_lowest_divergence():
    assert best(ROWS, 5)["rotation"] == "hadamard"
    assert best(ROWS, 11) is None


def test_tables_and_plot(tmp_path):
    assert "| 8x | palu chosen for 10x, 4/2 bits (10.0x) | 10.80 (+8.0 %) | 0.0600 |" in budget_table(ROWS)
    assert "| 5x | palu 50%, 4 bits, mixed (7.7x)" in budget_table(ROWS)
    assert palu_table(ROWS).splitlines()[-1] == "| 50% | 10.50 (500) | 10.50 (130) |"
    plot(ROWS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_every_ratio_has_all_bits_and_one_has_them_without_mixing_too():
    arms = [arm for arm, _ in settings([0.5, 0.25], [6.0])]
    assert sum(arm.get("ratio") == 0.25 for arm in arms) == 1 + 4 + 3
    assert sum(arm.get("ratio") == 0.5 for arm in arms) == 1 + 4 * 2 + 3
    assert arms[-1] == {"arm": "palu", "budget": 6.0}
    assert len({json.dumps(arm) for arm in arms}) == len(arms)


@pytest.mark.slow
def test_the_command_compresses_and_scores_every_setting(tmp_path):
    table, picture = tmp_path / "table.json", tmp_path / "plot.png"
    command = [sys.executable, "-m", "benchmarks.quality.table", "--ratios", "0.25", "--budgets", "6", "--rows", "1"]
    command += ["--context", "128", "--calib-samples", "2", "--out", str(table), "--plot", str(picture)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = json.loads(table.read_text())["rows"]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    fp8 = [row["perplexity"] for row in rows if row["arm"] == "fp8_e4m3 in vLLM"]
    if "FP8 KV cache on CPU requires x86 with AVX-512" in run.stderr:
        assert not fp8
    else:
        assert fp8[0] < 1.1 * rows[0]["perplexity"]
    assert rows[-1]["budget"] == 6 and rows[-1]["bytes_per_token"] <= rows[0]["bytes_per_token"] / 6
    assert "palu chosen for 6x" in run.stdout and picture.exists()
