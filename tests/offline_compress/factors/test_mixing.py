"""Mixing that is folded in changes no product."""

import torch

from offline_compress.factors.all_groups import decompose, grams_of
from offline_compress.factors.mixing import mixed_columns, mixed_factors, mixed_rows
from palu_vllm.format.latent_format import Tier
from palu_vllm.format.mixing import mixing_of_tiers


def test_folding_changes_no_product():
    torch.manual_seed(0)
    weight = torch.randn(2 * 32, 20)
    factors = decompose(weight, 12, grams_of(weight, 2))
    mixed = mixed_factors(factors, mixing_of_tiers([Tier(4, 8), Tier(8, 4)]))
    assert not torch.allclose(mixed.down, factors.down)
    for group in range(2):
        before = factors.up[group].T @ factors.down.view(2, 12, -1)[group]
        after = mixed.up[group].T @ mixed.down.view(2, 12, -1)[group]
        torch.testing.assert_close(after, before)


def test_folding_evens_out_the_numbers_of_a_latent():
    torch.manual_seed(0)
    weight = torch.randn(64, 64).double() * torch.logspace(0, -3, 64)
    factors = decompose(weight, 48, grams_of(weight, 1))
    x = torch.randn(500, 64).double()
    spread = [(x @ f.down.T).std(0) for f in (factors, mixed_factors(factors, mixing_of_tiers([Tier(48, 4)])))]
    ratios = [(s.max() / s.min()).item() for s in spread]
    assert ratios[1] < ratios[0] / 5


def test_mixed_heads_and_their_output_projection_cancel():
    torch.manual_seed(0)
    values, output, x = torch.randn(2 * 6, 10), torch.randn(10, 4 * 6), torch.randn(10).double()
    per_query_head = lambda v: v.view(2, 6).repeat_interleave(2, 0).flatten()  # noqa: E731
    expected = output.double() @ per_query_head(values.double() @ x)
    torch.testing.assert_close(mixed_columns(output, 6) @ per_query_head(mixed_rows(values, 6) @ x), expected)
