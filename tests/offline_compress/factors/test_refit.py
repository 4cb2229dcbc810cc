"""Least squares for ``up``: nothing changes where nothing is lost, and what is minimised gets smaller elsewhere."""

from dataclasses import replace

import pytest
import torch

from offline_compress.calibration.probe import AttentionProbe
from offline_compress.factors.all_groups import decompose, grams_of
from offline_compress.factors.decomposition import Factors
from offline_compress.factors.refit import Refit, fitted, read_keys, read_values
from tests.offline_compress.calibration.test_probe import HEAD_DIM, KV_HEADS, TOKENS, make_probe, normal

HIDDEN = 12


def case() -> tuple[AttentionProbe, torch.Tensor, torch.Tensor]:
    """A probe whose values come from ``inputs`` and ``weight``."""
    inputs, weight = normal(TOKENS, HIDDEN, seed=20), normal(KV_HEADS * HEAD_DIM, HIDDEN, seed=21)
    values = (inputs @ weight.T).unflatten(-1, (KV_HEADS, -1)).transpose(0, 1)
    return replace(make_probe(), values=values), inputs, weight


def rebuilt(factors: Factors, inputs: torch.Tensor) -> torch.Tensor:
    """``[kv_heads, tokens, head_dim]`` float64."""
    latents = (inputs.double() @ factors.down.T).unflatten(-1, (len(factors.up), -1))
    return torch.einsum("tgr,grf->tgf", latents, factors.up).flatten(1).unflatten(-1, (KV_HEADS, -1)).transpose(0, 1)


def lost(read, factors: Factors) -> float:
    """What the refit minimises, over all heads."""
    probe, inputs, weight = case()
    exact = (inputs @ weight.T).unflatten(-1, (KV_HEADS, -1)).transpose(0, 1)
    difference = (rebuilt(factors, inputs) - exact).float()
    return sum(read(probe, head, difference[head]).square().sum().item() for head in range(KV_HEADS))


@pytest.mark.parametrize("read", [read_keys, read_values])
@pytest.mark.parametrize("groups", [1, 2])
def test_nothing_changes_at_full_rank(read, groups):
    probe, inputs, weight = case()
    factors = decompose(weight, min(KV_HEADS * HEAD_DIM // groups, HIDDEN), grams_of(weight, groups))
    again = Refit(read, [(probe, inputs)])(factors, weight)
    torch.testing.assert_close(again.up, factors.up, rtol=1e-3, atol=1e-4)
    assert torch.equal(again.down, factors.down)


@pytest.mark.parametrize("read", [read_keys, read_values])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_read_is_lost_less(read, groups):
    probe, inputs, weight = case()
    factors = decompose(weight, 3, grams_of(weight, groups))
    again = Refit(read, [(probe, inputs)])(factors, weight)
    assert lost(read, again) < 0.9 * lost(read, factors)
    nudged = replace(again, up=again.up + 0.05 * normal(*again.up.shape, seed=30))
    assert lost(read, again) < lost(read, nudged)


def test_value_errors_of_attention_get_smaller():
    probe, inputs, weight = case()
    probe = replace(probe, output=torch.eye(len(probe.queries) * HEAD_DIM))  # outputs of heads weigh alike
    factors = decompose(weight, 4, grams_of(weight, 1))
    again = Refit(read_values, [(probe, inputs)])(factors, weight)
    before, after = (probe.value_error(rebuilt(one, inputs).float()) for one in (factors, again))
    assert after < 0.9 * before


def test_without_probes_nothing_changes():
    factors = decompose(case()[2], 3, grams_of(case()[2], 2))
    assert Refit(read_keys)(factors, case()[2]).up is factors.up


def test_directions_without_data_stay():
    old, latents = normal(5, 3).double(), normal(40, 5, seed=1).double()
    latents[:, 2] = 0
    found = fitted(old, latents.T @ latents, latents.T @ normal(40, 3, seed=2).double())
    torch.testing.assert_close(found[2], old[2])
    nothing = torch.zeros(5, 5).double()
    assert fitted(old, nothing, nothing[:, :3]) is old
