"""What a compression holds in memory, measured on a model whose layers outweigh everything else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offline_compress import compress
from offline_compress.model.source import open_source
from offline_compress.run.memory import peak_memory_bytes, resident_memory_bytes
from tests.support.tiny_models import build_even

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 128,
}
OPTIONS = {"search": "uniform", "calib_samples": 2, "calib_seqlen": 64, "group_size": 1, "device": "cpu"}


def compressed_by_the_command(model: Path, out: Path, **options: object) -> dict:
    """The report of a compression in a process of its own."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, "-m", "offline_compress", str(model), str(out), *flags], check=True)
    return json.loads((out / "palu_report.json").read_text())


def added_and_predicted(model: Path, out: Path, **options: object) -> tuple[int, int]:
    predicted = compress(model, out, dry_run=True, **options)["predicted_layer_memory_bytes"]
    report = compressed_by_the_command(model, out, **options)
    return report["peak_memory_bytes"] - report["baseline_memory_bytes"], predicted


def test_no_layer_is_in_memory_as_a_whole_and_the_peak_is_predicted(tmp_path, text):
    model = build_even(tmp_path / "model", dtype="bfloat16", **SHAPE)
    added, predicted = added_and_predicted(model, tmp_path / "out", calib_data=text, **OPTIONS)
    tensors = open_source(str(model)).tensors
    layer = sum(tensor.num_bytes for name, tensor in tensors.items() if name.startswith("model.layers.0."))
    moment = 8 * SHAPE["hidden_size"] ** 2
    assert added < layer + moment
    assert 0.75 * predicted < added < 1.15 * predicted, (added, predicted)


@pytest.mark.slow
def test_the_peak_of_a_search_for_a_budget_is_predicted(tmp_path, text):
    few_tiers = {"latent_bits": 4, "target_compression": 6}
    model = build_even(
        tmp_path / "model", dtype="bfloat16", **SHAPE | {"num_hidden_layers": 1, "max_position_embeddings": 512}
    )
    options = OPTIONS | few_tiers | {"group_size": 4, "calib_seqlen": 512, "calib_data": text}
    added, predicted = added_and_predicted(model, tmp_path / "out", **options)
    assert 0.75 * predicted < added < 1.15 * predicted, (added, predicted)


SMALL_MLP = {"num_hidden_layers": 1, "intermediate_size": 2048, "max_position_embeddings": 256}
METHODS = {
    "the paper's": {"objective": "whiten", "search": "uniform"},
    "the best": {"objective": "weighted", "search": "energy"},
    "in few bits": {"objective": "whiten", "search": "uniform", "latent_bits": 4},
    "for a budget": {"objective": "whiten", "target_compression": 6, "latent_bits": 4},
    "the best for a budget": {"objective": "weighted", "target_compression": 6, "latent_bits": 4},
}


def whole_peak_over_prediction(tmp_path: Path, text: str, **options: object) -> float:
    """Of the whole process, interpreter and libraries included."""
    model = build_even(tmp_path / "model", dtype="bfloat16", **SHAPE | SMALL_MLP)
    options = {"calib_samples": 2, "calib_seqlen": 256, "device": "cpu", "calib_data": text} | options
    added, predicted = added_and_predicted(model, tmp_path / "out", **options)
    baseline = json.loads((tmp_path / "out" / "palu_report.json").read_text())["baseline_memory_bytes"]
    return (baseline + added) / (baseline + predicted)


@pytest.mark.slow
def test_the_peak_of_the_weighted_objective_with_refit_is_predicted(tmp_path, text):
    assert 0.8 < whole_peak_over_prediction(tmp_path, text, **METHODS["the best"]) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [1, 4, 16])
@pytest.mark.parametrize("method", METHODS)
def test_the_peak_is_predicted(tmp_path, text, method, group_size):
    assert 0.8 < whole_peak_over_prediction(tmp_path, text, group_size=group_size, **METHODS[method]) < 1.2


def test_memory_is_measured():
    before = resident_memory_bytes()
    block = bytearray(b"x" * (64 << 20))
    assert resident_memory_bytes() - before > len(block) / 2
    assert peak_memory_bytes() >= 0.95 * resident_memory_bytes()
