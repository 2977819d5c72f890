"""Testing by betting: is the mean of losses in [0, bound] below alpha, looked at at any time?

A bet of fraction ``lambda`` on every loss X multiplies one's wealth by
``1 + lambda (alpha - X)``. If the mean of X is at least alpha, expected wealth never grows,
whoever looks and whenever, so it exceeds 1/delta with probability at most delta (Ville's
inequality; Waudby-Smith and Ramdas, arXiv 2010.09686). Wealth of several fixed fractions, mixed
with fixed weights, keeps the property.

The logarithm of wealth is a sum over losses. Devices can therefore send one number for each
fraction, the numbers add up, and the server may look after every round without paying for it, as
it would have to with the p-values of Learn-then-Test on data that grow.

Losses need not be alike: if only their average mean over a round is at least alpha, expected
wealth is at most ``prod(1 + lambda (alpha - mean_i)) <= (1 + lambda (alpha - average))^n <= 1`` by
the inequality of arithmetic and geometric means. So a round that takes the same number of prompts
from every client tests the mean over clients. Prompts drawn without replacement within a client
are negatively associated, which can only lower the expectation.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTIONS", "WEIGHTS", "log_terms", "log_wealth", "wealth_bounds"]

Floats = NDArray[np.float64]

FRACTIONS = np.array([0.9, 0.5, 0.2])
"""Bets as fractions of the largest one that cannot lose everything, 1 / (bound - alpha)."""

WEIGHTS = np.array([0.6, 0.25, 0.15])
"""Share of the first wealth put on each bet. Risks of texts vary little around a small mean, and
there the boldest bet gains most; the others are for risks close to alpha."""


def log_terms(losses: Floats, alpha: float, bound: float = 1.0) -> Floats:
    """Log-wealth that losses add to each bet, float64 [K]; terms of several devices add up.

    Parameters
    ----------
    losses : float64 [n], in [0, bound]
        Risk of each prompt.
    alpha : float
        In (0, 1) and below `bound`.
    bound : float
        Largest possible loss, >= 1 with audits at rate 1 / bound.

    Raises
    ------
    ValueError
        On an argument outside its range.
    """
    bets = _bets(alpha, bound)
    values = np.asarray(losses, dtype=np.float64)
    # A mean of weighted terms may exceed the bound by its rounding.
    if not ((values >= 0) & (values <= bound * (1 + 1e-9))).all():
        raise ValueError(f"losses: must lie in [0, {bound}]")
    return np.asarray(np.log1p(bets[None] * (alpha - values[:, None])).sum(axis=0))


def log_wealth(terms: Floats) -> float:
    """Logarithm of the mixed wealth, from summed `log_terms` float64 [K]; 0 before any loss."""
    parts = np.log(WEIGHTS) + np.asarray(terms, dtype=np.float64)
    largest = float(parts.max())
    return largest + math.log(float(np.exp(parts - largest).sum()))


def wealth_bounds(prompts: float, alpha: float, bound: float = 1.0) -> tuple[Floats, Floats]:
    """Least and most that `prompts` losses can add to each bet, float64 [K] each."""
    bets = _bets(alpha, bound)
    return prompts * np.log1p(bets * (alpha - bound)), prompts * np.log1p(bets * alpha)


def _bets(alpha: float, bound: float) -> Floats:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha}; must lie in (0, 1)")
    if not (np.isfinite(bound) and bound >= 1):
        raise ValueError(f"bound: {bound}; must be finite and at least 1")
    return FRACTIONS / (bound - alpha)
