"""Aggregation as arithmetic on arrays: means, robust locations, norm clipping.

Nothing here knows of Flower. Every function takes the replies of a round as one matrix
``values [n, d]`` (n replies, d parameters, float64), so that a million replies of one threshold
are one vectorised pass.

Sources: eq. 7 and 8 of FedHLM (arXiv 2507.00082); coordinate-wise median and trimmed mean of
Yin et al. (arXiv 1803.01498); Krum and Multi-Krum of Blanchard et al. (NeurIPS 2017).
"""

from __future__ import annotations

import numpy as np

from hlm.arrays import FloatArray, IntArray

KRUM_MAX_REPLIES = 20_000
"""Krum compares every pair of replies; past this many it would take minutes, so it is refused."""

_KRUM_BLOCK = 512  # rows of the distance matrix held at a time


def _check(values: FloatArray, weights: FloatArray | None) -> None:
    if values.ndim != 2 or values.shape[0] == 0:
        raise ValueError(f"values: shape {values.shape}; allowed: [n, d] with n >= 1")
    if weights is None:
        return
    if weights.shape != (values.shape[0],):
        raise ValueError(f"weights: shape {weights.shape}; allowed: ({values.shape[0]},)")
    if not bool(np.all(np.isfinite(weights) & (weights >= 0))):
        raise ValueError("weights: a negative or non-finite entry; allowed: finite and >= 0")


def weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean of the rows of ``values [n, d]`` weighted by ``weights [n]``.

    Returns
    -------
    float64 [d].

    Raises
    ------
    ValueError
        On a wrong shape, a negative weight, or weights that sum to zero.
    """
    _check(values, weights)
    total = float(weights.sum())
    if total <= 0:
        raise ValueError("weights: they sum to 0; allowed: at least one weight above 0")
    return np.asarray((weights / total) @ values, dtype=np.float64)


def cluster_means(
    values: FloatArray,
    weights: FloatArray,
    clusters: IntArray,
    num_clusters: int,
    previous: FloatArray,
) -> FloatArray:
    """Eq. 7 for all clusters at once: the n_k-weighted mean inside each cluster.

    Parameters
    ----------
    values : float64 [n, d]
    weights : float64 [n]
        n_k of eq. 7.
    clusters : int64 [n]
        Cluster of each row, in [0, num_clusters).
    num_clusters : int
    previous : float64 [num_clusters, d]
        What a cluster keeps when its weights sum to zero, where eq. 7 would divide by zero.

    Returns
    -------
    float64 [num_clusters, d].
    """
    _check(values, weights)
    if clusters.shape != weights.shape:
        raise ValueError(f"clusters: shape {clusters.shape}; allowed: {weights.shape}")
    if clusters.min() < 0 or clusters.max() >= num_clusters:
        raise ValueError(
            f"clusters: from {clusters.min()} to {clusters.max()}; allowed: 0 to {num_clusters - 1}"
        )
    if previous.shape != (num_clusters, values.shape[1]):
        raise ValueError(
            f"previous: shape {previous.shape}; allowed: ({num_clusters}, {values.shape[1]})"
        )
    totals = np.bincount(clusters, weights=weights, minlength=num_clusters)
    # Shares are formed before the sum, as w/total * value cannot overflow where w * value might.
    shares = weights / np.where(totals > 0, totals, 1.0)[clusters]
    result = np.array(previous, dtype=np.float64)
    heard = totals > 0
    if values.shape[1] <= 16:
        for column in range(values.shape[1]):
            sums = np.bincount(clusters, shares * values[:, column], minlength=num_clusters)
            result[heard, column] = sums[heard]
        return result
    order = np.argsort(clusters, kind="stable")
    present, starts = np.unique(clusters[order], return_index=True)
    sums = np.add.reduceat(shares[order, None] * values[order], starts, axis=0)
    keep = heard[present]
    result[present[keep]] = sums[keep]
    return result


def median(values: FloatArray) -> FloatArray:
    """Coordinate-wise median of ``values [n, d]``, unweighted. Returns float64 [d]."""
    _check(values, None)
    return np.asarray(np.median(values, axis=0), dtype=np.float64)


def trimmed_mean(values: FloatArray, trim: float) -> FloatArray:
    """Coordinate-wise mean after dropping the ``floor(trim * n)`` largest and smallest.

    Parameters
    ----------
    values : float64 [n, d]
    trim : float
        Share cut off at each end, in [0, 0.5).
    """
    _check(values, None)
    if not 0.0 <= trim < 0.5:
        raise ValueError(f"trim: {trim}; allowed: [0, 0.5)")
    count = values.shape[0]
    cut = int(trim * count)
    ordered = np.partition(values, (cut, count - cut - 1), axis=0)
    return np.asarray(ordered[cut : count - cut].mean(axis=0), dtype=np.float64)


def krum_order(values: FloatArray, malicious: int) -> IntArray:
    """Rows of ``values [n, d]`` from the most to the least trusted, by Krum's score.

    The score of a row is the sum of squared distances to its n - f - 2 nearest others (at least
    one), f = ``malicious``. Ties go to the earlier row. Distances are formed a block of rows at a
    time, so that memory grows as n, not n squared.

    Raises
    ------
    ValueError
        On f < 0 or more than `KRUM_MAX_REPLIES` rows.
    """
    _check(values, None)
    count = values.shape[0]
    if malicious < 0:
        raise ValueError(f"malicious: {malicious}; allowed: >= 0")
    if count > KRUM_MAX_REPLIES:
        raise ValueError(f"values: {count} replies; allowed for Krum: {KRUM_MAX_REPLIES}")
    nearest = min(max(1, count - malicious - 2), count - 1)
    if nearest == 0:
        return np.zeros(1, dtype=np.int64)
    # Distances do not change when the origin moves; near the data they cancel less.
    centred = values - values.mean(axis=0)
    norms = np.square(centred).sum(axis=1)
    scores = np.empty(count)
    for first in range(0, count, _KRUM_BLOCK):
        rows = np.arange(first, min(first + _KRUM_BLOCK, count))
        distances = norms[rows, None] + norms[None, :] - 2.0 * centred[rows] @ centred.T
        np.maximum(distances, 0.0, out=distances)
        distances[np.arange(rows.size), rows] = np.inf  # a row is not its own neighbour
        scores[rows] = np.partition(distances, nearest - 1, axis=1)[:, :nearest].sum(axis=1)
    return np.asarray(np.argsort(scores, kind="stable"), dtype=np.int64)


def clip_by_norm(deltas: FloatArray, bound: float) -> FloatArray:
    """Scale every row of ``deltas [n, d]`` down to an L2 norm of at most ``bound`` (> 0)."""
    if not bound > 0:
        raise ValueError(f"bound: {bound}; allowed: > 0")
    norms = np.linalg.norm(deltas, axis=-1, keepdims=True)
    return np.asarray(deltas * (bound / np.maximum(norms, bound)), dtype=np.float64)
