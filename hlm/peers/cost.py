"""When to ask peers before the large model, and how hit ratios grow with a cache.

Costs of eq. 12-13 (FedHLM, section V-A) are in whatever unit the caller chooses (bytes,
milliseconds, money), as long as it is the same one throughout.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hlm.ranges import require_between

__all__ = ["HitRatioFit", "PeerCosts", "fit_hit_ratio"]

FloatArray = npt.NDArray[np.float64]

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class PeerCosts:
    """Costs of resolving an uncertain token, all in one unit.

    Parameters
    ----------
    peer
        C_P2P, cost of asking the peers, from 0.
    llm
        C_LLM, cost of asking the large model, from 0.
    error
        c_err, cost of a wrong token, from 0. 0 gives the paper's rule.
    false_hit
        eps_hit, share of the peers' answers that are wrong, in [0, 1].
    """

    peer: float
    llm: float
    error: float = 0.0
    false_hit: float = 0.0

    def __post_init__(self) -> None:
        for name in ("peer", "llm", "error"):
            require_between(name, getattr(self, name), 0.0, math.inf)
        require_between("false_hit", self.false_hit, 0.0, 1.0)

    def expected(self, hit_probability: float) -> float:
        """Expected cost of a token for which peers are asked first.

        Eq. 12, (1 - p_hit) (C_P2P + C_LLM) + p_hit C_P2P, and p_hit c_err eps_hit for wrong hits.
        """
        require_between("hit_probability", hit_probability, 0.0, 1.0)
        wrong = self.error * self.false_hit
        return self.peer + (1.0 - hit_probability) * self.llm + hit_probability * wrong

    def least_hit_probability(self) -> float:
        """p_hit from which asking costs no more than not asking; infinite if it never pays.

        Eq. 13 is C_P2P / C_LLM; with wrong hits, C_P2P / (C_LLM - c_err eps_hit).
        """
        saved = self.llm - self.error * self.false_hit
        return self.peer / saved if saved > 0 else math.inf

    def worth_asking(self, hit_probability: float) -> bool:
        """Whether to ask the peers before the large model (eq. 13)."""
        require_between("hit_probability", hit_probability, 0.0, 1.0)
        return hit_probability >= self.least_hit_probability()


@dataclass(frozen=True)
class HitRatioFit:
    """Eq. 14, H(S) = 1 - exp(-alpha S), fitted to measured hit ratios.

    Parameters
    ----------
    alpha
        Per cache entry, from 0.
    rmse
        Root of the mean squared difference between measured and fitted ratios.
    """

    alpha: float
    rmse: float

    def ratio(self, size: npt.ArrayLike) -> FloatArray:
        """Fitted hit ratio at cache sizes S >= 0, of their shape."""
        return np.asarray(-np.expm1(-self.alpha * np.asarray(size, dtype=np.float64)))


def fit_hit_ratio(sizes: npt.ArrayLike, ratios: npt.ArrayLike) -> HitRatioFit:
    """Least-squares fit of eq. 14.

    Parameters
    ----------
    sizes
        Cache sizes, [n], finite, from 0, at least one above 0.
    ratios
        Measured hit ratios, [n], in [0, 1].

    Raises
    ------
    ValueError
        If the two do not match or leave their ranges.
    """
    size = np.asarray(sizes, dtype=np.float64)
    ratio = np.asarray(ratios, dtype=np.float64)
    if size.ndim != 1 or size.shape != ratio.shape:
        raise ValueError(f"sizes {size.shape} and ratios {ratio.shape} must be equal vectors")
    if not (np.all(np.isfinite(size)) and np.all(size >= 0) and np.any(size > 0)):
        raise ValueError("sizes must be finite and from 0, at least one above 0")
    if not np.all((ratio >= 0) & (ratio <= 1)):
        raise ValueError("ratios must be in [0, 1]")

    def squares(alpha: FloatArray) -> FloatArray:
        return np.asarray(np.square(ratio + np.expm1(-alpha[:, None] * size)).mean(axis=1))

    # The sum of squares can have several minima: a fine grid finds the lowest one's valley.
    positive = size[size > 0]
    grid = np.geomspace(1e-9 / positive.max(), 40.0 / positive.min(), 4001)
    grid = np.concatenate([[0.0], grid])
    best = int(squares(grid).argmin())
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    for _ in range(100):
        inner = high - _GOLDEN * (high - low)
        outer = low + _GOLDEN * (high - low)
        at_inner, at_outer = squares(np.array([inner, outer]))
        low, high = (low, outer) if at_inner <= at_outer else (inner, high)
    candidates = np.array([0.0, grid[best], (low + high) / 2])
    errors = squares(candidates)
    chosen = int(errors.argmin())
    return HitRatioFit(float(candidates[chosen]), math.sqrt(float(errors[chosen])))
