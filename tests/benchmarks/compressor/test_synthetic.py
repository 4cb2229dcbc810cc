"""Synthetic checkpoints are complete models, and one of 7B shape is compressed in little memory."""

import argparse
import json

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.compressor.memory import measure
from benchmarks.compressor.synthetic import SHAPES, large_config, write_model, write_text
from offline_compress import compress
from offline_compress.model.source import check_finite, open_source
from palu_vllm.format.checkpoint import INDEX


def test_it_is_a_model_that_can_be_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.compressor.synthetic.SHARD_BYTES", 50_000)
    monkeypatch.setattr("benchmarks.compressor.synthetic.WRITTEN_ELEMENTS", 1000)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=128, dtype="bfloat16",
    )  # fmt: skip
    layer_bytes = write_model(tmp_path / "model", config)
    source = open_source(str(tmp_path / "model"))
    check_finite(source)
    assert (tmp_path / "model" / INDEX).exists() and source.dtype == "bfloat16"
    of_layer = [tensor for name, tensor in source.tensors.items() if name.startswith("model.layers.1.")]
    assert sum(tensor.num_bytes for tensor in of_layer) == layer_bytes
    assert source.tensor("lm_head.weight").float().std().item() == pytest.approx(0.02, rel=0.1)
    write_text(tmp_path / "text.txt", 1000)
    report = compress(tmp_path / "model", tmp_path / "out", calib_data=str(tmp_path / "text.txt"),
                      objective="weighted", calib_samples=4, calib_seqlen=40)  # fmt: skip
    assert torch.isfinite(torch.tensor(report["relative_error_k"])).all()


@pytest.mark.parametrize(("shape", "layer"), [("llama-2-7b", 202_383_360), ("llama-3-8b", 218_112_000)])
def test_layers_are_those_of_the_real_models(shape, layer):
    config = large_config(shape, 4)
    assert (config.hidden_size, config.head_dim, config.num_hidden_layers) == (4096, 128, 4)
    kv = config.num_key_value_heads * config.head_dim
    projections = 2 * config.hidden_size**2 + 2 * config.hidden_size * kv
    found = projections + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    assert found == layer and SHAPES[shape]["vocab_size"] == config.vocab_size


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_layers_of_7b_shape_within_6_gib(tmp_path):
    arguments = argparse.Namespace(shape="llama-2-7b", layers=4, samples=2, seqlen=512, limit_gib=6, more=[])
    result = measure(tmp_path, arguments)
    assert result["within_limit"] and 0.8 < result["predicted_over_peak"] < 1.2, json.dumps(result)
    assert len(result["layer_seconds"]) == 4
