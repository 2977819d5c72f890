"""Risk by prompt and by client, which benchmarks look at; runs only ever see sums over prompts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlm.risk import conformal_threshold
from hlm.risk.curves import require_grid

Floats = NDArray[np.float64]


def prompt_curves(
    u: Floats, loss: Floats, prompt: NDArray[np.int64], grid: Floats
) -> tuple[Floats, Floats]:
    """Risk and kept share of each prompt at each threshold of ``grid``.

    Parameters
    ----------
    u, loss, prompt, grid
        As `hlm.risk.curves.risk_sums`.

    Returns
    -------
    risk, kept : float64 [P, G]
        One row per distinct prompt, ascending.
    """
    require_grid(grid)
    names, row = np.unique(prompt, return_inverse=True)
    width = len(grid) + 1
    # A token is kept at every grid point >= u: it enters at the first of them and stays.
    cell = row * width + np.searchsorted(grid, u, side="left")
    share = 1.0 / np.bincount(row, minlength=len(names))[row]
    shape = (len(names), width)
    risk = np.bincount(cell, weights=loss * share, minlength=len(names) * width).reshape(shape)
    kept = np.bincount(cell, weights=share, minlength=len(names) * width).reshape(shape)
    return np.cumsum(risk[:, :-1], axis=1), np.cumsum(kept[:, :-1], axis=1)


def risk_at(curves: Floats, grid: Floats, thresholds: Floats) -> Floats:
    """Value of each row of ``curves`` float64 [C, G] at its threshold float64 [C].

    A curve steps up at grid points and is 0 below the first: exact for thresholds on the grid
    and for `hlm.risk.ESCALATE_ALL`.
    """
    column = np.searchsorted(grid, thresholds, side="right") - 1
    values = curves[np.arange(len(curves)), np.maximum(column, 0)]
    return np.where(column < 0, 0.0, values)


def by_group(rows: Floats, groups: NDArray[np.int64], count: int) -> Floats:
    """Sums of rows float64 [n, G] that belong to the same group, float64 [count, G]."""
    total = np.zeros((count, rows.shape[1]))
    np.add.at(total, groups, rows)
    return total


def personal_thresholds(
    sums: Floats,
    prompts: Floats,
    grid: Floats,
    alpha: float,
    tier: Literal["global", "cluster", "local", "shrunk"],
    clusters: NDArray[np.int64],
    pseudo_prompts: float = 50.0,
) -> Floats:
    """Conformal threshold of every client, as runs with this `personalisation` read them.

    Parameters
    ----------
    sums : float64 [C, G]
        Each client's summed risk.
    prompts : float64 [C]
        Each client's number of prompts.
    grid : float64 [G]
        Ascending thresholds.
    alpha : float
        Largest expected risk, in (0, 1).
    tier : {"global", "cluster", "local", "shrunk"}
        Who shares a threshold; in ``shrunk`` a client's curve is joined by `pseudo_prompts` of its
        cluster's mean risk.
    clusters : int64 [C]
        Cluster of each client.
    pseudo_prompts : float
        See ``shrunk``, >= 0.

    Returns
    -------
    float64 [C]
    """
    groups = np.zeros_like(clusters) if tier == "global" else clusters
    shared = by_group(sums, groups, int(groups.max()) + 1)[groups]
    count = np.bincount(groups, prompts)[groups]
    if tier in ("global", "cluster"):
        sums, prompts = shared, count
    elif tier == "shrunk":
        sums = sums + pseudo_prompts * shared / np.maximum(count, 1.0)[:, None]
        prompts = prompts + np.where(count > 0, pseudo_prompts, 0.0)
    pairs = zip(sums, prompts, strict=True)
    return np.array([conformal_threshold(curve, n, grid, alpha) for curve, n in pairs])
