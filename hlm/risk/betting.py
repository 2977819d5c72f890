"""Testing by betting: is the mean of losses in [0, bound] below alpha, looked at at any time?

A bet of fraction ``lambda`` on every loss X multiplies one's wealth by
``1 + lambda (alpha - X)``. If the mean of X is at least alpha, expected wealth never grows,
whoever looks and whenever, so it exceeds 1/delta with probability at most delta (Ville's
inequality; Waudby-Smith and Ramdas, arXiv 2010.09686). Wealth of several fixed fractions, mixed
with fixed weights, keeps the property.

The logarithm of wealth is a sum over losses. Devices can therefore send one number for each
fraction, the numbers add up, and the server may look after every round without paying for it, as
it would have to with the p-values of Learn-then-Test on data that grow.

Clients that differ, and do not all answer
------------------------------------------
Let client i of m have prompts of mean loss ``r_i`` in [0, B], and let the null be about the mixture
of all m: ``mean_i r_i >= alpha``. Write ``a_i = 1 + lambda (alpha - r_i)``, the mean of a factor of
client i. Then ``low <= a_i <= high`` with ``low = 1 + lambda (alpha - B)`` and
``high = 1 + lambda alpha``, and under the null ``sum_i a_i <= m``. Divide each factor by its mean:

    M = prod over prompts of (1 + lambda (alpha - X)) / a_client

is a nonnegative martingale that starts at 1, whoever answers, as long as *who answers in a round
does not depend on the losses of that round*: it may depend on everything before, on the client's
mean, on chance. (Prompts drawn in a round without replacement are negatively associated and their
factors fall in X, so the mean of the product is at most the product of means; Joag-Dev and
Proschan, 1983, and M a supermartingale.) The means are not known, but with c_i prompts of client i
read so far

    K(c) = max {prod a_i^c_i : low <= a_i <= high, sum_i a_i <= m}

bounds what they can be, so wealth / K(c) <= M at all times at once, and Ville's inequality holds
for wealth / K(c): with fractions of clients, dropouts, and clients that never come (c_i = 0: theirs
is the worst loss there is). Where all have answered equally often K = 1, by the inequality of
arithmetic and geometric means: full participation pays nothing. It holds for each bet, hence for
their mixture. The set of clients may grow: M is the same, so what is certified at a time holds for
the clients of that time.

The maximum is concave: ``a_i = clip(c_i / mu, low, high)`` for some mu > 0 (water-filling). For
*every* mu > 0, ``sum_i max_a (c_i log a - mu a) + mu m`` is at least log K (weak duality), so an
inexact mu costs power and never validity.

Liars
-----
A client that lies within the bounds adds at most ``log(1 + lambda alpha)`` a prompt, which is what
honest losses of 0 add. So f liars of m are f clients of risk 0: what is certified at alpha then
holds for the m - f others at ``alpha m / (m - f)``, with the same probability.
"""

from __future__ import annotations

import math

import numpy as np

from hlm.arrays import FloatArray

FRACTIONS = np.array([0.9, 0.5, 0.2])
"""Bets as fractions of the largest one that cannot lose everything, 1 / (bound - alpha)."""

WEIGHTS = np.array([0.6, 0.25, 0.15])
"""Share of the first wealth put on each bet. Risks of texts vary little around a small mean, and
there the boldest bet gains most; the others are for risks close to alpha."""


def log_terms(losses: FloatArray, alpha: float, bound: float = 1.0) -> FloatArray:
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


def log_wealth(terms: FloatArray) -> float:
    """Logarithm of the mixed wealth, from summed `log_terms` float64 [K]; 0 before any loss."""
    parts = np.log(WEIGHTS) + np.asarray(terms, dtype=np.float64)
    largest = float(parts.max())
    return largest + math.log(float(np.exp(parts - largest).sum()))


def wealth_bounds(
    prompts: float, alpha: float, bound: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Least and most that `prompts` losses can add to each bet, float64 [K] each."""
    bets = _bets(alpha, bound)
    return prompts * np.log1p(bets * (alpha - bound)), prompts * np.log1p(bets * alpha)


def log_imbalance(counts: FloatArray, alpha: float, bound: float = 1.0) -> FloatArray:
    """Log of K(c), what unequal answers may have won by themselves, float64 [K], >= 0.

    Subtract it from the sum of all `log_terms` before `log_wealth`; see the module's proof.

    Parameters
    ----------
    counts : float64 or int64 [m]
        Prompts read of each of the m >= 1 clients; 0 for those not heard of.
    alpha, bound : float
        As in `log_terms`.

    Raises
    ------
    ValueError
        On an argument outside its range.
    """
    bets = _bets(alpha, bound)
    read = np.asarray(counts, dtype=np.float64)
    if read.ndim != 1 or not read.size or not (np.isfinite(read) & (read >= 0)).all():
        raise ValueError("counts: must be one number >= 0 for each of at least one client")
    values, many = np.unique(read, return_counts=True)
    if len(values) == 1:
        return np.zeros(len(bets))
    low, high = 1 + bets * (alpha - bound), 1 + bets * alpha
    # The means sum to m at a mu between these: at the first none is above 1, at the second all
    # clients heard of are at `high`, and if that is allowed nothing is left to choose.
    above = np.full(len(bets), math.log(values[-1]))
    below = math.log(values[values > 0][0]) - np.log(high)
    for _ in range(25):
        middle = (above + below) / 2
        means = _means(values, middle, low, high)
        too_much = means @ many > read.size
        below, above = np.where(too_much, middle, below), np.where(too_much, above, middle)
    means = _means(values, above, low, high)
    mu = np.exp(above)
    dual = (values * np.log(means)) @ many + mu * (read.size - means @ many)
    return np.asarray(np.clip(dual, 0.0, read.sum() * np.log(high)))


def _means(values: FloatArray, log_mu: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """``clip(c / mu, low, high)``, float64 [K, V]."""
    wanted = values[None] / np.exp(log_mu)[:, None]
    return np.asarray(np.clip(wanted, low[:, None], high[:, None]))


def _bets(alpha: float, bound: float) -> FloatArray:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha}; must lie in (0, 1)")
    if not (np.isfinite(bound) and bound >= 1):
        raise ValueError(f"bound: {bound}; must be finite and at least 1")
    return FRACTIONS / (bound - alpha)
