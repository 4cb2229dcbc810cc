"""What ``--latent-bits`` and ``--hadamard`` write: sizes in the report, and weights that compute the same."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress import compress
from palu_vllm.format.checkpoint import read_config
from tests.support.tiny_models import build_even

TOKENS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return build_even(tmp_path_factory.mktemp("dense") / "model", "qwen2")


@torch.no_grad()
def logits(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(TOKENS).logits


@pytest.mark.parametrize("rank_ratio", [0.5, 1.0])
@pytest.mark.parametrize("value_path", ["fused", "factored"])
def test_mixed_latents_give_the_same_logits(dense, tmp_path, rank_ratio, value_path):
    options = {"rank_ratio": rank_ratio, "objective": "svd", "search": "uniform", "value_path": value_path}
    compress(dense, tmp_path / "plain", hadamard=False, **options)
    compress(dense, tmp_path / "rotated", hadamard=True, **options)
    torch.testing.assert_close(logits(tmp_path / "rotated"), logits(tmp_path / "plain"), atol=2e-4, rtol=1e-4)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "rotated")]
    assert files[0] != files[1]


def test_the_report_counts_bytes_and_the_configuration_says_bits(dense, tmp_path):
    out = tmp_path / "out"
    report = compress(dense, out, objective="svd", search="uniform", tiers=((0.5, 8), (0.5, 3)), latent_bits_v=4)
    _, palu, geometry = read_config(out)
    assert palu.hadamard and [tier.bits for tier in palu.tiers_k] == [8, 3]
    key = 2 * 4 + 16 + (4 + 2) + 2  # two scales, 16 numbers of 8 bits, 16 of 3 bits, padding
    value = 4 + 16  # a scale, 32 numbers of 4 bits
    assert palu.rank_k == palu.rank_v == [32, 32]
    assert report["bytes_per_token"] == 2 * (key + value) == palu.bytes_per_token(geometry, "float32")
    assert report["compression"] == report["dense_bytes_per_token"] / report["bytes_per_token"]
    assert json.loads((out / "palu_report.json").read_text())["tiers_v"] == [{"share": 1.0, "bits": 4}]


def test_latents_are_rotated_where_they_are_quantized_and_only_there(dense, tmp_path):
    options = {"objective": "svd", "search": "uniform"}
    assert not compress(dense, tmp_path / "numbers", **options)["hadamard"]
    assert compress(dense, tmp_path / "bits", latent_bits=4, **options)["hadamard"]


def test_groups_share_the_rotation_of_their_tier_and_count_in_the_bytes(dense, tmp_path):
    options = {"objective": "svd", "search": "uniform", "latent_bits": 4}
    whole = compress(dense, tmp_path / "whole", **options)
    report = compress(dense, tmp_path / "cut", latent_group_size=16, latent_clip_ratio=0.75, **options)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert report["bytes_per_token"] - whole["bytes_per_token"] == 2 * 2 * 4  # a second scale and minimum per part
    _, palu, _ = read_config(tmp_path / "cut")
    assert palu.latent_group_size == report["latent_group_size"] == 16
    assert palu.clip_k == palu.clip_v == report["clip_k"] == [0.75] * len(palu.rank_k)
    assert whole["clip_k"] is None


def test_symmetric_codes_have_no_minimum(dense, tmp_path):
    options = {"objective": "svd", "search": "uniform", "latent_bits": 4, "latent_group_size": 16}
    report = compress(dense, tmp_path / "out", latent_symmetric=True, **options)
    assert report["latent_symmetric"] and report["bytes_per_token"] == 2 * 2 * (2 * 2 + 16)
