"""Configurations of 8B shape say what they are, and a tiny one has the same form."""

import json

import pytest

from benchmarks.gpu.dummy_models import ARMS, dense_config, palu_config, write_model
from palu_vllm.format.codec.file import load_codec
from palu_vllm.format.config import AttentionGeometry, PaluConfig


@pytest.mark.parametrize("rehearse", [False, True])
def test_ranks_keep_half_of_the_numbers(rehearse):
    geometry = AttentionGeometry.from_hf_config(dense_config(rehearse))
    config = palu_config(rehearse)
    config.check(geometry)
    kept = 2 * geometry.num_kv_heads // config.group_size_k * (config.rank_k[0] + config.rank_v[0])
    share = kept / (2 * 2 * geometry.num_kv_heads * geometry.head_dim)
    assert share == pytest.approx(0.5 if not rehearse else 40 / 256)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_written_with_the_options_that_serve_it(arm, tmp_path):
    options = write_model(tmp_path, arm, rehearse=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert options["load_format"] == "dummy" and options["model"] == str(tmp_path)
    assert ("palu_config" in config) == (options.get("attention_backend") == "palu") == arm.startswith("palu")
    additional = options.get("additional_config", {}).get("palu", {})
    if arm.startswith("palu"):
        assert PaluConfig.from_hf_config(config).rank_k == [16, 16]
        assert additional == ({"latent_bits": 4} if arm == "palu_4" else {})
    if arm == "codec":
        codec = load_codec(tmp_path)
        assert additional == {"codec": str(tmp_path), "codec_digest": "ignore"} and set(codec.layers) == {0, 1}
        dense = 2 * 2 * 4 * 32 * 2  # layers, K and V, heads, numbers, bytes
        assert 3.5 < dense / codec.bytes_per_token < 4.5
