"""Standard errors of scores, of their differences and of their ratios, by linearization (the delta method).

A score is a mean over rows, or exp of a ratio of sums (perplexity). Its influence values ``[rows]`` say how far each
row moves it; the standard error is that of their mean. For 0/1 scores this is the binomial
``sqrt(p (1 - p) / (n - 1))``. Two models that answered the same rows are paired by subtracting influence values row by
row before squaring them.
"""

import math
from collections.abc import Sequence

import numpy as np


def mean(rows: Sequence[float]) -> float:
    return math.fsum(rows) / len(rows)


def perplexity(losses: Sequence[float], tokens: Sequence[float]) -> float:
    """exp of summed negative log-likelihoods in nats per token."""
    return math.exp(math.fsum(losses) / math.fsum(tokens))


def influence(rows: Sequence[float], weights: Sequence[float] | None = None) -> np.ndarray:
    """``[rows]`` float64, mean 0: of the mean of ``rows``, or with ``weights`` (tokens) of the perplexity of losses."""
    values = np.asarray(rows, dtype=np.float64)
    if weights is None:
        return values - values.mean()
    tokens = np.asarray(weights, dtype=np.float64)
    per_token = values.sum() / tokens.sum()
    return math.exp(per_token) * (values - per_token * tokens) / tokens.mean()


def standard_error(influences: np.ndarray) -> float | None:
    """Of the score whose influence values these are; None for a single row, which has none."""
    count = len(influences)
    return float(np.sqrt(np.square(influences).sum() / (count * (count - 1)))) if count > 1 else None


def ratio_influence(top: float, top_influence: np.ndarray, bottom: float, bottom_influence: np.ndarray) -> np.ndarray:
    """Of ``top / bottom``, both measured on the same rows. ``bottom`` is not 0."""
    return (top_influence - top / bottom * bottom_influence) / bottom


def independent_ratio_error(
    top: float, top_error: float | None, bottom: float, bottom_error: float | None
) -> float | None:
    """Of ``top / bottom`` where the rows are not known: larger than a paired one would be."""
    if top_error is None or bottom_error is None:
        return None
    return math.hypot(top_error, top / bottom * bottom_error) / abs(bottom)
