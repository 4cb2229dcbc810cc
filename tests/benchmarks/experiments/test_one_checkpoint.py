"""Cutting on disk for the benchmark is what a server does: shapes, bytes, products."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.experiments.one_checkpoint import FOR_THE_RATIO, RATIOS, SOURCES, cut, table
from palu_vllm.format.checkpoint import check_shapes, read_config
from tests.support.truncated import truncate


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.arange(1, 20)[None]).logits


def test_numbers_are_those_of_the_checkpoint_cut_on_disk(palu, tmp_path):
    whole = palu("llama", 48, 48)
    expected = truncate(whole, tmp_path / "expected", (32, 32), (32, 32))
    found = cut(whole, tmp_path / "found", 0.5, 16)
    check_shapes(found)
    torch.testing.assert_close(logits(found), logits(expected))


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_latents_are_rotated_and_take_their_bytes(palu, tmp_path, bits):
    found = cut(palu("llama", 48, 48), tmp_path / "found", 0.5, bits)
    _, config, geometry = read_config(found)
    assert config.hadamard and config.is_packed and config.rank_k == [32, 32]
    assert config.bytes_per_token(geometry, "float32") == 2 * 2 * 2 * (4 + 32 * bits // 8)
    assert torch.isfinite(logits(found)).all()


def test_the_table_has_every_way():
    ways = [FOR_THE_RATIO, *(source.title for source in SOURCES)]
    assert len(set(ways)) == len(ways)
    rows = [{"ratio": ratio, "bits": bits, "way": way, "perplexity": 27.0, "kl": 0.1}
            for way in ways for ratio in RATIOS for bits in (16, 4)]  # fmt: skip
    lines = table(rows).splitlines()
    assert len(lines) == 2 + 2 * len(ways) and len({line.count("|") for line in lines}) == 1
