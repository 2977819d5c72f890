"""How good clusters are, and cluster numbers that stay the same over re-clusterings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import IntArray


def purity(assignment: Sequence[int] | IntArray, label_counts: NDArray[np.integer]) -> float:
    """Share of items whose label is the commonest of their cluster.

    Parameters
    ----------
    assignment : int64 [clients]
        Cluster of each client.
    label_counts : int64 [clients, labels]
        Items of each label that each client holds.

    Returns
    -------
    float
        In (0, 1]; at least the share of the commonest label.

    Raises
    ------
    ValueError
        On different lengths, a negative count or no items.
    """
    clusters = _whole("assignment", assignment)
    counts = np.asarray(label_counts)
    if counts.ndim != 2 or len(counts) != len(clusters):
        raise ValueError(f"label_counts: shape {counts.shape}; allowed: [{len(clusters)}, labels]")
    if counts.size == 0 or counts.min() < 0 or counts.sum() == 0:
        raise ValueError("label_counts: negative or without items; allowed: >= 0, some > 0")
    totals = np.zeros((int(clusters.max()) + 1, counts.shape[1]), np.int64)
    np.add.at(totals, clusters, counts)
    return float(totals.max(axis=1).sum() / totals.sum())


def adjusted_rand_index(
    assignment: Sequence[int] | IntArray, groups: Sequence[int] | IntArray
) -> float:
    """Agreement of clusters with the true groups, corrected for chance: 1 same, 0 by chance.

    Hubert and Arabie 1985, as scikit-learn has it; can be slightly negative.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(_whole("groups", groups), _whole("assignment", assignment)))


def label_mapping(old: Sequence[int] | IntArray, new: Sequence[int] | IntArray) -> IntArray:
    """Numbers for new clusters under which as many clients as possible keep their old one.

    A maximum matching of the table of counts (Hungarian method). Ties keep a number as it is.

    Parameters
    ----------
    old, new : int64 [clients]
        Clusters of the same clients, at least 0; -1 in `old` for a client that had none.

    Returns
    -------
    int64 [k]
        A permutation: new cluster c becomes ``mapping[c]``.

    Raises
    ------
    ValueError
        On different lengths or a cluster below what is allowed.
    """
    from scipy.optimize import linear_sum_assignment

    before, after = _whole("old", old, least=-1), _whole("new", new)
    if len(before) != len(after):
        raise ValueError(f"old, new: lengths {len(before)} and {len(after)}; allowed: equal")
    count = int(max(before.max(), after.max())) + 1
    table = np.zeros((count, count))
    known = before >= 0
    np.add.at(table, (after[known], before[known]), 1.0)
    # Below one client in sum, so it decides between equals only.
    table[np.diag_indices(count)] += 0.5 / count
    _, mapping = linear_sum_assignment(table, maximize=True)
    return np.asarray(mapping, np.int64)


def _whole(name: str, values: Sequence[int] | IntArray, least: int = 0) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu" or array.min() < least:
        raise ValueError(f"{name}: {array!r}; allowed: whole numbers >= {least}, at least one")
    return array.astype(np.int64)
