"""Ways of storing keys and values, and the table of their errors."""

from functools import partial

import pytest
import torch

from offline_compress.factors.all_groups import decompose, grams_of
from offline_compress.ranks.storage_errors import Projected, Storage, storage_errors
from palu_vllm.format.latent_format import LatentFormat, Tier
from palu_vllm.format.mixing import mixing_of_tiers

GROUPS, HEADS, HEAD_DIM, HIDDEN, TOKENS = 2, 4, 16, 48, 30
FULL = HEADS // GROUPS * HEAD_DIM


def storage(rank: int, bits: int, rotated: bool = False) -> Storage:
    tiers = (Tier(rank, bits),)
    return Storage(LatentFormat(tiers, "float32"), partial(mixing_of_tiers, tiers) if rotated else None)


@pytest.fixture
def projected() -> Projected:
    torch.manual_seed(0)
    weight, inputs = torch.randn(HEADS * HEAD_DIM, HIDDEN), torch.randn(TOKENS, HIDDEN)
    whole = (inputs @ weight.T).unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1)
    return Projected.of(decompose(weight, FULL, grams_of(weight, GROUPS)), inputs, whole)


def distance(projected: Projected, one: Storage) -> float:
    return (projected.stored(one.form.rank, one) - projected.whole).square().mean().item()


def test_any_rank_is_a_prefix_of_the_factors_of_full_rank(projected):
    torch.manual_seed(0)
    weight, inputs = torch.randn(HEADS * HEAD_DIM, HIDDEN), torch.randn(TOKENS, HIDDEN)
    factors = decompose(weight, 16, grams_of(weight, GROUPS))
    latents = (inputs.double() @ factors.down.T).unflatten(-1, (GROUPS, 16))
    expected = torch.einsum("tgr,grf->tgf", latents, factors.up).reshape(TOKENS, HEADS, HEAD_DIM).transpose(0, 1)
    torch.testing.assert_close(projected.stored(16, storage(16, 16)).double(), expected, rtol=1e-4, atol=1e-4)


def test_full_rank_in_16_bits_loses_nothing(projected):
    assert torch.equal(projected.stored(FULL, storage(FULL, 16)), projected.whole)


def test_fewer_ranks_and_fewer_bits_lose_more(projected):
    table = storage_errors(
        projected,
        lambda keys: (keys - projected.whole).square().mean().item(),
        [[storage(rank, bits) for bits in (16, 8, 4, 3, 2)] for rank in (8, 16, 24, FULL)],
    )
    assert table.shape == (4, 5) and table.dtype == torch.float64
    assert (table.diff(dim=1) > 0).all()
    assert (table[:, :2].diff(dim=0) < 0).all()


def test_a_rotation_changes_codes_but_not_what_they_stand_for(projected):
    plain, rotated = storage(16, 8), storage(16, 8, rotated=True)
    assert distance(projected, rotated) == pytest.approx(distance(projected, plain), rel=0.01)
    assert not torch.equal(projected.stored(16, plain), projected.stored(16, rotated))
    latents = torch.randn(3, 16)
    form = LatentFormat((Tier(16, 16),), "float32")
    assert Storage(form, partial(mixing_of_tiers, form.tiers)).read_back(latents) is latents
