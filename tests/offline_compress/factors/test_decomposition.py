import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_compress.factors import all_groups
from offline_compress.factors.all_groups import discarded_energy, grams_of
from offline_compress.factors.decomposition import Factors, damp, decompose_group, gram_matrix, symmetric_root

HIDDEN, GROUPS, FULL = 24, 3, 8


def decompose(
    weight: torch.Tensor,
    groups: int,
    rank: int,
    moment: torch.Tensor | None = None,
    metric: torch.Tensor | None = None,
) -> Factors:
    return all_groups.decompose(weight, rank, grams_of(weight, groups, moment), metric)


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A projection, correlated inputs and the mean of x x^T of those inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(GROUPS * FULL, HIDDEN, generator=generator, dtype=torch.float64)
    mix = torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64)
    inputs = torch.randn(400, HIDDEN, generator=generator, dtype=torch.float64) @ (
        mix * torch.linspace(0.05, 1, HIDDEN)
    )
    return weight, inputs, inputs.T @ inputs / len(inputs)


def random_metric(seed: int) -> torch.Tensor:
    """``A`` of every group, of very different sizes."""
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.randn(GROUPS, FULL, FULL, generator=generator, dtype=torch.float64) * torch.logspace(-0.5, 0.5, FULL)
    return rows.mT @ rows


def cost(weight: torch.Tensor, factors: Factors, moment: torch.Tensor, metric: torch.Tensor) -> float:
    """``tr(A dW H dW^T)`` over all groups."""
    lost = (weight - rebuild(factors.down, factors.up)).chunk(GROUPS)
    return sum((own @ rows @ moment @ rows.T).trace().item() for own, rows in zip(metric, lost, strict=True))


def rebuild(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.cat([u.T @ d for u, d in zip(up, down.chunk(len(up)), strict=True)])


def output_error(weight: torch.Tensor, approximation: torch.Tensor, inputs: torch.Tensor) -> float:
    return ((inputs @ (weight - approximation).T).norm() / (inputs @ weight.T).norm()).item()


@pytest.mark.parametrize("whitened", [False, True])
def test_full_rank_gives_the_weights_back(whitened):
    weight, _, moment = random_case(0)
    factors = decompose(weight, GROUPS, FULL, damp(moment) if whitened else None)
    torch.testing.assert_close(rebuild(factors.down, factors.up), weight, rtol=1e-9, atol=1e-9)
    assert factors.relative_error == pytest.approx(0, abs=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rank=st.integers(1, FULL - 1))
def test_whitened_error_is_the_discarded_singular_values_and_below_svd(seed, rank):
    weight, inputs, moment = random_case(seed)
    whitened = decompose(weight, GROUPS, rank, damp(moment))
    plain = decompose(weight, GROUPS, rank)
    error = output_error(weight, rebuild(whitened.down, whitened.up), inputs)
    assert whitened.relative_error == pytest.approx(error, rel=1e-3)
    assert error <= output_error(weight, rebuild(plain.down, plain.up), inputs) + 1e-9


@pytest.mark.parametrize("whitened", [False, True])
def test_it_is_the_truncated_svd_of_the_paper(whitened, monkeypatch):
    monkeypatch.setattr("offline_compress.factors.decomposition.BLOCK_ROWS", 3)
    weight, _, moment = random_case(6)
    moment = damp(moment) if whitened else None
    factor = torch.linalg.cholesky(moment) if whitened else torch.eye(HIDDEN).double()
    left, singular, right = torch.linalg.svd(weight[:FULL] @ factor, full_matrices=False)
    up, down, energy = decompose_group(weight[:FULL], 5, gram_matrix(weight[:FULL], moment))
    torch.testing.assert_close(energy, singular.square())
    torch.testing.assert_close(up.abs(), (left[:, :5] * singular[:5].sqrt()).abs())
    torch.testing.assert_close((down @ factor).abs(), (singular[:5].sqrt()[:, None] * right[:5]).abs())


def test_plain_svd_error_is_that_of_the_weights():
    weight, _, _ = random_case(1)
    factors = decompose(weight, GROUPS, 3)
    error = (weight - rebuild(factors.down, factors.up)).norm() / weight.norm()
    assert factors.relative_error == pytest.approx(error.item())


@pytest.mark.parametrize("whitened", [False, True])
def test_error_never_grows_with_rank(whitened):
    weight, _, moment = random_case(2)
    moment = damp(moment) if whitened else None
    errors = [decompose(weight, GROUPS, rank, moment).relative_error for rank in range(1, FULL + 1)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("whitened", [False, True])
def test_a_group_wider_than_the_hidden_size(whitened):
    weight, _, moment = random_case(5)
    factors = decompose(weight.repeat(4, 1), 1, 40, damp(moment) if whitened else None)
    assert factors.down.shape == (40, HIDDEN)
    # directions whose energy is near the rounding error of the largest mix with those that have none
    torch.testing.assert_close(rebuild(factors.down, factors.up), weight.repeat(4, 1), rtol=1e-6, atol=1e-7)


def test_groups_do_not_mix():
    weight, _, moment = random_case(3)
    moment = damp(moment)
    together = decompose(weight, GROUPS, 4, moment)
    rows = weight[FULL : 2 * FULL]
    up, down, _ = decompose_group(rows, 4, gram_matrix(rows, moment))
    assert torch.equal(together.down[4:8], down)
    assert torch.equal(together.up[1], up.T)


def test_whitening_survives_inputs_of_deficient_rank():
    weight, inputs, _ = random_case(4)
    few = inputs[:5]
    factors = decompose(weight, GROUPS, 5, damp(few.T @ few / 5))
    assert output_error(weight, rebuild(factors.down, factors.up), few) < 1e-3


@pytest.mark.parametrize("moment", [torch.zeros(4, 4).double(), torch.full((4, 4), torch.nan).double()])
def test_useless_inputs_are_an_error(moment):
    with pytest.raises(ValueError, match="all zero or not finite"):
        damp(moment)


def test_error_metric_change_nothing_at_full_rank():
    weight, _, moment = random_case(0)
    factors = decompose(weight, GROUPS, FULL, damp(moment), random_metric(0))
    torch.testing.assert_close(rebuild(factors.down, factors.up), weight, rtol=1e-6, atol=1e-7)


def test_error_metric_that_are_the_identity_are_none():
    weight, _, moment = random_case(7)
    moment, same = damp(moment), torch.eye(FULL).double().expand(GROUPS, -1, -1)
    with_metric, without = decompose(weight, GROUPS, 5, moment, same), decompose(weight, GROUPS, 5, moment)
    expected = rebuild(without.down, without.up)
    torch.testing.assert_close(rebuild(with_metric.down, with_metric.up), expected, atol=1e-5, rtol=1e-5)
    unread = decompose(weight, GROUPS, 5, moment, torch.zeros_like(same))
    torch.testing.assert_close(rebuild(unread.down, unread.up), expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rank=st.integers(1, FULL - 1))
def test_the_weighted_cost_is_the_discarded_energy_and_the_lowest(seed, rank):
    weight, _, moment = random_case(seed)
    moment, metric = damp(moment), random_metric(seed)
    best = decompose(weight, GROUPS, rank, moment, metric)
    damped = torch.stack([damp(own.clone()) for own in metric])  # as the root of each is
    found = cost(weight, best, moment, damped)
    assert discarded_energy(grams_of(weight, GROUPS, moment), metric)[rank].item() == pytest.approx(found, rel=1e-4)
    for other in (decompose(weight, GROUPS, rank), decompose(weight, GROUPS, rank, moment)):
        assert found <= cost(weight, other, moment, damped) * (1 + 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_discarded_energy_is_that_of_the_factors_at_every_rank(weighted):
    weight, _, moment = random_case(9)
    moment, metric = damp(moment), random_metric(9) if weighted else None
    lost = discarded_energy(grams_of(weight, GROUPS, moment), metric)
    assert len(lost) == FULL + 1 and lost[-1] == 0
    for rank in range(1, FULL):
        error = decompose(weight, GROUPS, rank, moment, metric).relative_error
        assert (lost[rank] / lost[0]).sqrt().item() == pytest.approx(error, rel=1e-6)
    assert torch.all(lost.diff().diff() >= -1e-9 * lost[0])  # convex: the greedy choice of ranks is exact


def test_roots_are_roots_and_not_finite_weights_an_error():
    root, inverse = symmetric_root(random_metric(3)[0])
    torch.testing.assert_close(root @ inverse, torch.eye(FULL).double(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(root @ root, random_metric(3)[0], rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="not finite"):
        symmetric_root(torch.full((4, 4), torch.nan).double())


@pytest.mark.parametrize("lowest", [0, -4, -8, -12, -16])
def test_squaring_the_singular_values_is_harmless(lowest):
    """The Gram matrix has squares of singular values, so that float64 holds those above about 1e-8 of the largest.

    The truncated error is that of an SVD to 1e-6 of itself, or below 1e-7 of the largest singular value.
    """
    generator = torch.Generator().manual_seed(lowest)
    left, _, right = torch.linalg.svd(torch.randn(64, 96, generator=generator).double(), full_matrices=False)
    values = torch.logspace(0, lowest, 64, dtype=torch.float64)
    weight = (left * values) @ right
    for rank in (1, 16, 40, 63):
        factors = decompose(weight, 1, rank)
        error = (weight - rebuild(factors.down, factors.up)).norm().item()
        least = values[rank:].square().sum().sqrt().item()
        assert error <= max(least * (1 + 1e-6), 1e-7)
