"""Standard errors agree with the bootstrap, with the binomial formula, and with what scores are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.report.standard_errors import (
    independent_ratio_error,
    influence,
    mean,
    perplexity,
    ratio_influence,
    standard_error,
)

ROWS = st.lists(st.floats(0, 1), min_size=2, max_size=40)
RNG = np.random.default_rng(0)
COUNT = 200
TOKENS = RNG.integers(50, 150, COUNT)
LOSSES = TOKENS * RNG.normal(3.0, 0.2, COUNT)
WORSE = LOSSES + TOKENS * RNG.normal(0.05, 0.02, COUNT)  # another model on the same rows
RIGHT = (RNG.random(COUNT) < 0.7).astype(float)
OTHER = np.where(RNG.random(COUNT) < 0.9, RIGHT, 1 - RIGHT)


def bootstrap(statistic, resamples: int = 4000) -> float:
    """The standard deviation of ``statistic(indices)`` over resampled rows."""
    rng = np.random.default_rng(1)
    return float(np.std([statistic(rng.integers(0, COUNT, COUNT)) for _ in range(resamples)]))


def ppl(losses: np.ndarray):
    return lambda rows: math.exp(losses[rows].sum() / TOKENS[rows].sum())


def ppl_parts(losses: np.ndarray) -> tuple[float, np.ndarray]:
    return perplexity(losses, TOKENS), influence(losses, TOKENS)


@pytest.mark.parametrize(
    ("influences", "statistic"),
    [
        (influence(RIGHT), lambda rows: RIGHT[rows].mean()),
        (influence(LOSSES, TOKENS), ppl(LOSSES)),
        (influence(OTHER) - influence(RIGHT), lambda rows: OTHER[rows].mean() - RIGHT[rows].mean()),
        (influence(WORSE, TOKENS) - influence(LOSSES, TOKENS), lambda rows: ppl(WORSE)(rows) - ppl(LOSSES)(rows)),
        (
            ratio_influence(OTHER.mean(), influence(OTHER), RIGHT.mean(), influence(RIGHT)),
            lambda rows: OTHER[rows].mean() / RIGHT[rows].mean(),
        ),
        (
            ratio_influence(*ppl_parts(LOSSES), *ppl_parts(WORSE)),
            lambda rows: ppl(LOSSES)(rows) / ppl(WORSE)(rows),
        ),
    ],
    ids=["mean", "perplexity", "difference", "perplexity difference", "recovery", "perplexity recovery"],
)  # fmt: skip
def test_agrees_with_the_bootstrap(influences, statistic):
    assert standard_error(influences) == pytest.approx(bootstrap(statistic), rel=0.08)


@given(right=st.integers(0, 30), count=st.integers(2, 30))
def test_zero_one_scores_are_binomial(right, count):
    right = min(right, count)
    rows = [1.0] * right + [0.0] * (count - right)
    share = right / count
    assert standard_error(influence(rows)) == pytest.approx(math.sqrt(share * (1 - share) / (count - 1)))


@given(ROWS)
def test_influences_have_mean_zero_and_no_order(rows):
    influences = influence(rows)
    assert influences.mean() == pytest.approx(0, abs=1e-12)
    assert standard_error(influence(rows[::-1])) == pytest.approx(standard_error(influences))


@given(ROWS)
def test_a_model_beside_itself_has_no_uncertainty(rows):
    own = influence(rows)
    assert standard_error(own - own) == 0
    if mean(rows) > 0.01:
        assert standard_error(ratio_influence(mean(rows), own, mean(rows), own)) == pytest.approx(0, abs=1e-9)


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    tokens = [10, 20, 30]
    assert perplexity([math.log(50) * count for count in tokens], tokens) == pytest.approx(50)
    assert standard_error(influence([math.log(50) * count for count in tokens], tokens)) == pytest.approx(0, abs=1e-9)


def test_one_row_has_no_error():
    assert standard_error(influence([0.5])) is None
    assert independent_ratio_error(0.5, None, 1.0, 0.1) is None


def test_pairing_is_sharper_than_independence():
    paired = standard_error(ratio_influence(OTHER.mean(), influence(OTHER), RIGHT.mean(), influence(RIGHT)))
    errors = [standard_error(influence(rows)) for rows in (OTHER, RIGHT)]
    assert paired < independent_ratio_error(OTHER.mean(), errors[0], RIGHT.mean(), errors[1])
