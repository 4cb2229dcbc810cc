"""Rotations that are folded in change no product."""

import torch

from offline_compress.factors.decomposition import decompose
from offline_compress.factors.mixing import rotate_columns, rotate_factors, rotate_rows
from palu_vllm.format.latent_format import Tier
from palu_vllm.format.mixing import mixing_of_tiers


def test_folding_changes_no_product():
    torch.manual_seed(0)
    factors = decompose(torch.randn(2 * 32, 20), 2, 12)
    rotated = rotate_factors(factors, mixing_of_tiers([Tier(4, 8), Tier(8, 4)]))
    assert not torch.allclose(rotated.down, factors.down)
    for group in range(2):
        before = factors.up[group].T @ factors.down.view(2, 12, -1)[group]
        after = rotated.up[group].T @ rotated.down.view(2, 12, -1)[group]
        torch.testing.assert_close(after, before)


def test_folding_evens_out_the_numbers_of_a_latent():
    torch.manual_seed(0)
    weight = torch.randn(64, 64).double() * torch.logspace(0, -3, 64)
    factors = decompose(weight, 1, 48)
    x = torch.randn(500, 64).double()
    spread = [(x @ f.down.T).std(0) for f in (factors, rotate_factors(factors, mixing_of_tiers([Tier(48, 4)])))]
    ratios = [(s.max() / s.min()).item() for s in spread]
    assert ratios[1] < ratios[0] / 5


def test_rotated_heads_and_their_output_projection_cancel():
    torch.manual_seed(0)
    values, output, x = torch.randn(2 * 6, 10), torch.randn(10, 4 * 6), torch.randn(10).double()
    per_query_head = lambda v: v.view(2, 6).repeat_interleave(2, 0).flatten()  # noqa: E731
    expected = output.double() @ per_query_head(values.double() @ x)
    torch.testing.assert_close(rotate_columns(output, 6) @ per_query_head(rotate_rows(values, 6) @ x), expected)
