"""From a risk curve to a threshold: conformal risk control and Learn-then-Test.

Clients that differ
-------------------
A fixed number of prompts from each client is no sample of independent draws from their mixture.
What holds for it:

*Learn-then-Test: the same.* Let S be the sum of n independent losses in [0, B], not alike, with
average mean r >= alpha, or of losses drawn without replacement within clients. In convex order S
is below the sum of as many independent draws (Hoeffding, 1963, theorem 4), below the sum of
independent coins of B with the same means, and below B times a binomial of n and r / B (Hoeffding,
1956). Both halves of the p-value need no more than that: Hoeffding's is the best bound by an
exponential, Bentkus's (Annals of Probability 32(2), 2004, theorem 1.1, made for means that differ)
the best by a hinge ``E (x - S)_+``, and both functions are convex. So the test of "the average mean
is above alpha" has level delta.

*Missing losses taken for B.* That raises S, and a prompt more that is wholly wrong raises either
p-value too, as ``Bin(n + 1) <= Bin(n) + 1``. So whatever is missing, a test of the sample with B in
the gaps has at most the level of a test of the whole one, if n does not depend on losses.

*Conformal risk control: alpha (n + 1) / n.* Let ``T_j`` be the largest grid point at which the
other prompts' sum is at most ``c = alpha (n + 1) - B``. It does not depend on prompt j, and is at
least the threshold T, so ``E sum_j r_j(T) <= E sum_j r_j(T_j) = E sum_j R_j(T_j)``. If ``T_k`` is
the largest of them, the prompts other than k have a sum of at most c even there, and k adds at most
B: the average risk is at most ``(c + B) / n = alpha (n + 1) / n``. With prompts that are
exchangeable with the next one it is at most alpha.
"""

from __future__ import annotations

import numpy as np

from hlm.arrays import FloatArray
from hlm.risk.curves import require_grid

ESCALATE_ALL = -1.0
"""Threshold below every uncertainty: nothing is kept, so the risk is 0 whatever the data."""


def conformal_threshold(
    sums: FloatArray, prompts: float, grid: FloatArray, alpha: float, bound: float = 1.0
) -> float:
    """Conformal risk control (arXiv 2208.02814, eq. 4) on a pooled risk curve.

    ``th = sup{th in grid : (sum_i R_i(th) + bound) / (n + 1) <= alpha}``, or
    :data:`ESCALATE_ALL` if no grid point qualifies, which is always so for
    ``n < bound / alpha - 1``.

    Parameters
    ----------
    sums : float64 [G]
        ``sum_i R_i(grid[g])``; rounding or added noise may leave it not quite monotone, in which
        case its running maximum counts.
    prompts : float
        Number n of prompts.
    grid : float64 [G]
        Ascending thresholds.
    alpha : float
        Largest expected risk, in (0, 1).
    bound : float
        Largest possible risk of one prompt, > 0: 1, or ``1 / audit_rate``.

    Raises
    ------
    ValueError
        On an argument outside its range.
    """
    require_grid(grid)
    _require_level("alpha", alpha)
    _require_bound(bound)
    curve = _require_sums(sums, grid)
    if not (np.isfinite(prompts) and prompts >= 0):
        raise ValueError(f"prompts must be finite and not negative, got {prompts}")
    allowed = np.maximum.accumulate(curve) + bound <= alpha * (prompts + 1)
    passing = int(np.count_nonzero(allowed))
    return float(grid[passing - 1]) if passing else ESCALATE_ALL


def learn_then_test(
    sums: FloatArray,
    prompts: float | FloatArray,
    grid: FloatArray,
    alpha: float,
    delta: float,
    bound: float = 1.0,
) -> float:
    """Learn-then-Test (arXiv 2110.01052): risk <= alpha with probability >= 1 - delta.

    Tests ``risk(th) > alpha`` at each grid point in a fixed order, from the most careful one up,
    at level delta each, and stops at the first that cannot be rejected. Returns the last rejected
    threshold, or :data:`ESCALATE_ALL`.

    Parameters
    ----------
    sums : float64 [G]
        ``sum_i R_i(grid[g])`` of independent prompts, which may differ in their mean; need not be
        monotone.
    prompts : float or float64 [G]
        Number of prompts, of each candidate if given per grid point: in free-running generation
        every candidate is measured on its own text, and 0 means not measured yet.
    grid : float64 [G]
        Ascending thresholds.
    alpha, delta : float
        In (0, 1).
    bound : float
        Largest possible risk of one prompt, > 0.

    Raises
    ------
    ValueError
        On an argument outside its range.
    """
    require_grid(grid)
    _require_level("alpha", alpha)
    _require_level("delta", delta)
    _require_bound(bound)
    curve = _require_sums(sums, grid)
    counts = np.broadcast_to(np.asarray(prompts, dtype=np.float64), curve.shape)
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("prompts must be finite and not negative")
    p_values = np.ones(len(grid))
    for count in np.unique(counts[counts > 0]):
        chosen = counts == count
        # Losses in [0, bound] become losses in [0, 1] tested at alpha / bound.
        mean = np.minimum(curve[chosen] / (count * bound), 1.0)
        p_values[chosen] = hoeffding_bentkus(mean, int(count), min(alpha / bound, 1.0))
    failing = np.flatnonzero(p_values > delta)
    passing = int(failing[0]) if len(failing) else len(grid)
    return float(grid[passing - 1]) if passing else ESCALATE_ALL


def hoeffding_bentkus(risk: FloatArray, prompts: int, alpha: float) -> FloatArray:
    """P-value of "true risk > alpha" for the mean of ``prompts`` losses in [0, 1].

    ``min(exp(-n h1(min(R, alpha), alpha)), e P(Bin(n, alpha) <= ceil(n R)))`` with
    ``h1(a, b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b))`` (arXiv 2110.01052, prop. 7).

    Parameters
    ----------
    risk : float64 [G], in [0, 1]
        Empirical means.
    prompts : int
        n >= 1.
    alpha : float
        In (0, 1].

    Returns
    -------
    float64 [G], in [0, 1]
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    mean = np.asarray(risk, dtype=np.float64)
    if alpha >= 1:
        # Nothing can exceed a risk of 1, so the hypothesis is false from the start.
        return np.zeros_like(mean)
    below = np.minimum(mean, alpha)
    hoeffding = np.exp(-prompts * _relative_entropy(below, alpha))
    # A mean of n terms carries rounding; 1e-9 keeps ceil from stepping past an exact integer.
    successes = np.ceil(prompts * mean - 1e-9).astype(np.int64)
    bentkus = np.e * binomial_cdf(prompts, alpha)[np.clip(successes, 0, prompts)]
    return np.asarray(np.minimum(np.minimum(hoeffding, bentkus), 1.0), dtype=np.float64)


def risk_bound(risk: float, prompts: int, delta: float) -> float:
    """Upper confidence bound of a risk: the least alpha whose excess `hoeffding_bentkus` rejects.

    The true risk is at most this with probability >= 1 - delta, for independent prompts and a
    threshold that was chosen without them.

    Parameters
    ----------
    risk : float
        Mean of the losses of `prompts` >= 1 prompts, in [0, 1].
    delta : float
        In (0, 1).
    """
    _require_level("delta", delta)
    low, high = risk, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        rejected = hoeffding_bentkus(np.array([risk]), prompts, middle)[0] <= delta
        low, high = (low, middle) if rejected else (middle, high)
    return high


def binomial_cdf(trials: int, probability: float) -> FloatArray:
    """``P(Bin(trials, probability) <= k)`` for k = 0 .. trials, float64 [trials + 1].

    Sums of exact log-probabilities from the small end, so lower tails keep their relative
    precision.
    """
    if trials < 0:
        raise ValueError(f"trials must not be negative, got {trials}")
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie in (0, 1), got {probability}")
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    k = np.arange(trials + 1)
    log_mass = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_mass += k * np.log(probability) + (trials - k) * np.log1p(-probability)
    return np.asarray(np.minimum(np.cumsum(np.exp(log_mass)), 1.0), dtype=np.float64)


def _relative_entropy(a: FloatArray, b: float) -> FloatArray:
    """``a ln(a / b) + (1 - a) ln((1 - a) / (1 - b))`` with 0 ln 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(a > 0, a * np.log(a / b), 0.0)
        second = np.where(a < 1, (1 - a) * np.log((1 - a) / (1 - b)), 0.0)
    return np.asarray(first + second, dtype=np.float64)


def _require_sums(sums: FloatArray, grid: FloatArray) -> FloatArray:
    curve = np.asarray(sums, dtype=np.float64)
    if curve.shape != grid.shape or not np.isfinite(curve).all():
        raise ValueError(f"sums must be finite with shape {grid.shape}, got shape {curve.shape}")
    return curve


def _require_level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")


def _require_bound(bound: float) -> None:
    if not (np.isfinite(bound) and bound > 0):
        raise ValueError(f"bound must be finite and above 0, got {bound}")
