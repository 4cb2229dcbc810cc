"""The clip ratio that is searched is the best of those tried, and reaches the cache."""

import json
from dataclasses import replace

import pytest
import torch

from offline_compress import compress
from offline_compress.factors.clip_ratio import CLIP_RATIOS, ClipSearch, best_clip_ratio
from palu_vllm.format.checkpoint import read_config
from palu_vllm.format.latent_format import LatentFormat, Tier
from palu_vllm.format.packing import rounded

QUICK = {"calib_samples": 4, "calib_seqlen": 40}


def normal(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def form(bits: int, rank: int = 128) -> LatentFormat:
    return LatentFormat((Tier(rank, bits),), "float32")


def test_for_normal_numbers_it_is_near_the_known_optimum():
    latents = normal(100, 2, 128)  # the largest of 128 is 2.6 deviations; the best 2-bit range is 1.5 (Max, 1960)
    assert best_clip_ratio(latents, None, form(2)) == pytest.approx(1.5 / 2.6, abs=0.08)
    assert best_clip_ratio(latents, None, form(3)) == pytest.approx(2.05 / 2.6, abs=0.08)
    assert best_clip_ratio(latents, None, form(8)) == 1.0


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_nothing_that_was_tried_is_better_in_what_is_rebuilt(bits):
    latents, up = normal(100, 2, 48) * torch.linspace(3, 0.1, 48), normal(2, 48, 64)

    def error(ratio: float) -> float:
        lost = rounded(latents, replace(form(bits, 48), clip=ratio)) - latents
        return torch.einsum("tgr,grf->tgf", lost, up).square().sum().item()

    best = best_clip_ratio(latents, up, form(bits, 48))
    assert error(best) == min(map(error, CLIP_RATIOS)) < error(0.3)


def test_without_inputs_nothing_is_searched():
    assert ClipSearch(replace(form(2), clip=0.8), None)(normal(128, 10), None) == 0.8


@pytest.mark.parametrize("options", [{}, {"rank_ratio": 1.0}, {"objective": "svd"}, {"value_path": "factored"}])
def test_ratios_are_in_the_checkpoint_and_lower_than_one_for_two_bits(tmp_path, text, dense, options):
    out = tmp_path / "out"
    report = compress(dense("qwen2"), out, latent_bits=2, calib_data=text, **QUICK, **options)
    _, palu, _ = read_config(out)
    assert len(palu.clip_k) == len(palu.clip_v) == 2
    assert set(palu.clip_k + palu.clip_v) <= set(CLIP_RATIOS) and min(palu.clip_k + palu.clip_v) < 1
    assert palu.key_format(1, "float32").clip == palu.clip_k[1] == report["clip_k"][1]


def test_a_ratio_that_is_given_is_taken_and_without_data_it_is_one(tmp_path, text, dense):
    given = compress(dense(), tmp_path / "a", latent_bits=2, latent_clip_ratio=0.9, calib_data=text, **QUICK)
    assert given["clip_k"] == given["clip_v"] == [0.9, 0.9]
    compress(dense(), tmp_path / "b", latent_bits=2, objective="svd")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["palu_config"]["clip_k"] is None
