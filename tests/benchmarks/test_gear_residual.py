"""GEAR's recipe on latents: the bytes that are said are those of the tensors, and every part takes error away."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gear_residual import BUDGETS, TIERS, Tiers, families, table
from benchmarks.gear_storage import QUANTIZERS, Residual, Stored
from palu_vllm.packing import pack, pack_codes

TOKENS, GROUPS, WIDTH = 64, 3, 48


@pytest.fixture
def latents() -> torch.Tensor:
    """Numbers that fall from the first to the last, as those of a latent do."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TOKENS, GROUPS, WIDTH, generator=generator) * torch.logspace(0, -1.5, WIDTH)


def error(way, latents: torch.Tensor) -> float:
    return (way(latents) - latents).square().mean().item()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize(("rank", "outliers"), [(0, 1), (2, 0), (4, 2)])
def test_bytes_are_those_of_the_tensors(latents, quantizer, bits, rank, outliers):
    way = Residual(quantizer, bits, 16, rank, outliers)
    blocks = latents.transpose(0, 1).unflatten(1, (-1, 16)).flatten(0, 1)
    if quantizer == "per channel":
        codes = len(blocks) * WIDTH * (pack_codes(torch.zeros(16, dtype=torch.uint8), bits).numel() + 4)
    else:
        codes = pack(blocks, way.form(WIDTH)).numel()
    held = codes + Stored.of(blocks, way).bytes_beside_codes()
    assert way.bytes(WIDTH) * TOKENS * GROUPS == pytest.approx(held)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_part_takes_error_away(latents, quantizer):
    plain = Residual(quantizer, 2, 16, 0, 0)
    errors = [error(replace(plain, rank=rank), latents) for rank in (0, 1, 2, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0], "of full rank, the error is in 16 bits"
    assert error(replace(plain, outliers=WIDTH // 2 - 1), latents) < 1e-2 * errors[0]


def test_without_parts_it_is_a_single_tier(latents):
    tiers = Tiers(((1.0, 4),))
    torch.testing.assert_close(Residual("rotated", 4, 16, 0, 0)(latents), tiers(latents), atol=1e-5, rtol=1e-5)
    assert Residual("rotated", 4, 16, 0, 0).bytes(WIDTH) == tiers.bytes(WIDTH)


def test_a_block_depends_on_its_own_tokens_alone(latents):
    way, other = Residual("per channel", 2, 16, 2, 1), latents.clone()
    other[:16], other[32:] = 7.0, latents[:32]
    torch.testing.assert_close(way(latents)[16:32], way(other)[16:32])


def test_per_channel_scales_are_those_of_the_channel(latents):
    """A channel that is a thousand times larger changes nothing of the others."""
    way, larger = Residual("per channel", 3, 16, 0, 0), latents.clone()
    larger[..., 0] *= 1000
    torch.testing.assert_close(way(larger)[..., 1:], way(latents)[..., 1:])


def test_tiers_are_those_of_the_budget_search():
    found = families()
    assert len(found["tiers"]) == len(TIERS) - 1
    assert len(set(found["gear"])) == len(found["gear"])
    assert all(way.rank or way.outliers for way in found["gear"])


def test_the_table_has_every_row():
    rows = [
        {"times": times, "family": family, "bytes_per_token": 1000.0, "perplexity": 27.5, "kl": 0.01}
        | ({} if family == "palu-compress" else {"tried": 3, "ratio": 0.5, "way": "w"})
        for times in BUDGETS for family in ("palu-compress", "tiers", "gear")
    ]  # fmt: skip
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1
