"""Risk curves on a grid of thresholds: what clients sum, per prompt, and send once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hlm.arrays import FloatArray, IntArray

UNIT = 2.0**-16
"""Step of the numbers a curve is sent in, in prompts."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class RiskSums:
    """What one client, or any sum of clients, says about its risk.

    Attributes
    ----------
    risk : float64 [G]
        ``sum_i R_i(grid[g])`` over prompts; never falls.
    prompts : float
        Number of prompts.
    """

    risk: FloatArray
    prompts: float

    def as_vector(self) -> FloatArray:
        """Flat float64 [1 + G] of whole numbers: prompts, then the rises of the curve in `UNIT`.

        Whole numbers because they add up exactly, suit secure aggregation, and take a byte where a
        few prompts leave most of a grid without a rise. The curve is rounded up, by less than
        `UNIT` a client: a threshold read from it can only be the more careful. Vectors add up.
        """
        whole = np.ceil(self.risk / UNIT - _ROUNDING)
        return np.concatenate([[self.prompts], np.diff(whole, prepend=0.0)])

    @classmethod
    def from_vector(cls, vector: ArrayLike) -> RiskSums:
        """The curve of a vector, or of a sum of vectors.

        Raises
        ------
        ValueError
            If the vector is too short or anything is negative or not finite.
        """
        flat = np.asarray(vector, dtype=np.float64)
        if flat.ndim != 1 or flat.size < 2:
            raise ValueError(f"risk sums need at least two numbers, got shape {flat.shape}")
        if not (np.isfinite(flat).all() and (flat >= 0).all()):
            raise ValueError("risk sums must be finite and not negative")
        return cls(risk=np.cumsum(flat[1:]) * UNIT, prompts=float(flat[0]))


def threshold_grid(points: int = 256) -> FloatArray:
    """``points`` >= 2 ascending thresholds from 0 to 1, float64, dense at both ends.

    Equal steps of ln(th / (1 - th)): a label is often sure to .001, a token of running text
    unsure to .99, and a uniform grid resolves neither.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    inner = 1 / (1 + np.exp(-np.linspace(-9.0, 9.0, points - 2)))
    return np.concatenate([[0.0], inner, [1.0]])


def risk_sums(u: FloatArray, loss: FloatArray, prompt: IntArray, grid: FloatArray) -> RiskSums:
    """Sum the risk of prompts at each threshold of a grid, in memory O(n + G).

    Parameters
    ----------
    u : float64 [n]
        Uncertainty of each token.
    loss : float64 [n], >= 0
        ``w * beta`` of each token (0 where beta is unknown).
    prompt : int64 [n]
        Prompt of each token, any integers.
    grid : float64 [G]
        Ascending thresholds.

    Raises
    ------
    ValueError
        If the three are not flat and of one length, or the grid does not ascend.
    """
    require_grid(grid)
    shapes = [np.shape(one) for one in (u, loss, prompt)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"u, loss and prompt must be flat and of one length, got shapes {shapes}")
    names, row = np.unique(prompt, return_inverse=True)
    # A token is kept at every grid point >= u: it enters at the first of them and stays.
    cell = np.searchsorted(grid, u, side="left")
    share = 1.0 / np.bincount(row, minlength=len(names))[row]
    risk = np.bincount(cell, weights=loss * share, minlength=len(grid) + 1)[:-1]
    return RiskSums(risk=np.cumsum(risk), prompts=float(len(names)))


def require_grid(grid: FloatArray) -> None:
    """Raise ValueError unless `grid` [g] ascends strictly and is not empty."""
    if grid.ndim != 1 or not len(grid) or not (np.diff(grid) > 0).all():
        raise ValueError("grid must be one ascending array without repetitions")
