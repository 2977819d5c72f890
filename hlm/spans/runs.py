"""How long drafts stay sure: a two-state Markov chain from six counts.

Counted is how often a text begins with a sure draft, and how often one follows an unsure and a sure
one. A device drafts at every position it reads, so what the LLM wrote is not missing. Bands of
uncertainty, and the length of the run so far, tell no more of what follows
(`docs/negative-results.md`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

COUNTS = (3, 2)
"""Shape of counts: at a text's start, after an unsure, after a sure draft; unsure, sure."""


def count_runs(sure: Bools, lengths: NDArray[np.int64] | None = None) -> Floats:
    """All that a client sends, float64 [3, 2] as `COUNTS` says; counts of clients add up.

    Parameters
    ----------
    sure : bool [texts, positions]
        Whether the device's uncertainty of its draft is at most its threshold.
    lengths : int64 [texts], optional
        Tokens of each text; by default all positions.
    """
    texts, positions = sure.shape
    before = np.column_stack([np.zeros(texts, np.int64), sure + 1])[:, :-1]
    ends = np.full(texts, positions) if lengths is None else lengths
    there = np.arange(positions) < ends[:, None]
    counts = np.zeros(COUNTS)
    np.add.at(counts, (before[there], sure[there].astype(np.int64)), 1.0)
    return counts


def checked_counts(vector: ArrayLike) -> Floats:
    """Counts, or their sum over clients, from a flat list of six numbers.

    Raises
    ------
    ValueError
        If there are not six, or one is negative or not finite.
    """
    flat = np.asarray(vector, dtype=np.float64).ravel()
    if flat.size != COUNTS[0] * COUNTS[1]:
        raise ValueError(f"take-back counts: {flat.size} numbers; allowed: 6")
    if not (np.isfinite(flat).all() and (flat >= 0).all()):
        raise ValueError(f"take-back counts: {flat.tolist()}; allowed: finite and >= 0")
    return flat.reshape(COUNTS)


def chances_of(counts: Floats) -> Floats:
    """Chance of a sure draft at a text's start, after an unsure and after a sure one, float64 [3].

    One token of all rows together is added to each, so that a row never counted is like the others.

    Raises
    ------
    ValueError
        If nothing was counted at all.
    """
    if not counts.any():
        raise ValueError("take-back counts: all 0; allowed: at least one token")
    mean = counts[:, 1].sum() / counts.sum()
    return np.asarray((counts[:, 1] + mean) / (counts.sum(axis=1) + 1.0))
