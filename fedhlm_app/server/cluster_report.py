"""How good a run's clusters are, in the figures of `summary.json`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.partitions import label_counts, partition
from fedhlm_app.server.clusters import Clusters
from fedhlm_app.settings import Settings
from strategies.clustering.learned import LearnedClusters
from strategies.clustering.reports import adjusted_rand_index, purity


def true_groups(settings: Settings, counts: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Groups that the data was built from: each client's class; None where there are none.

    Parameters
    ----------
    settings : Settings
    counts : numpy.ndarray
        int64 [clients, labels], items of each label that each client holds.

    Returns
    -------
    int64 [clients] or None. Clients fewer than labels hold several classes, and have no group.
    """
    if settings.partition != "by-class" or len(counts) < int((counts.sum(axis=0) > 0).sum()):
        return None
    return np.asarray(counts.argmax(axis=1), np.int64)


def clustering_figures(clusters: Clusters) -> dict[str, Any]:
    """Method, map, purity, agreement with true groups, bytes and privacy of a run's clusters.

    Purity counts all items a client holds, by their labels in the data, which the server knows
    in a simulation and nobody does otherwise.
    """
    settings = clusters.settings
    items = items_of(settings)
    shares = partition(
        items, settings.clients, settings.partition, settings.dirichlet_alpha, settings.seed
    )
    counts = label_counts(items, shares)
    assignment = clusters.assignment
    groups = true_groups(settings, counts)
    learned = clusters.map.result if isinstance(clusters.map, LearnedClusters) else None
    return {
        "method": settings.cluster_by,
        "map": {str(client): cluster for client, cluster in enumerate(assignment)},
        "purity": purity(assignment, counts),
        "adjusted_rand_index": None if groups is None else adjusted_rand_index(assignment, groups),
        "silhouette": None if learned is None else learned.silhouette,
        "clusterings": clusters.clusterings,
        "bytes": clusters.bytes,
        "epsilon": clusters.epsilon,
        "refused": {str(client): why for client, why in sorted(clusters.refused.items())},
        "silent": list(clusters.silent),
    }
