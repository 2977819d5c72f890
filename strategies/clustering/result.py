"""Clusters as they were found: renumbering, what tells them apart, and their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hlm.arrays import FloatArray, IntArray
from strategies.clustering.features import FeatureSpace
from strategies.clustering.pairwise import PairwiseTest
from strategies.clustering.reports import label_mapping


def _no_clients() -> IntArray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class ClusterResult:
    """Clusters, and what is needed to place another client.

    Attributes
    ----------
    assignment : numpy.ndarray
        int64 [clients], in [0, clusters).
    clusters : int
        Number of clusters.
    method : str
        How they were found; empty before the first clustering, when every other field has its
        default.
    centroids : numpy.ndarray or None
        float64 [clusters, features] in `space`.
    distances : numpy.ndarray or None
        float64 [clients], each client's distance to its own centroid.
    silhouette : float or None
        Mean silhouette in [-1, 1]; None where it is not defined (one cluster, one client each).
    space : FeatureSpace or None
    test : PairwiseTest or None
        Of the clients at `tested`, with `classifier` only.
    tested : numpy.ndarray
        int64, places of the clients that had samples enough for the test.
    """

    clusters: int
    assignment: IntArray = field(default_factory=_no_clients)
    method: str = ""
    centroids: FloatArray | None = None
    distances: FloatArray | None = None
    silhouette: float | None = None
    space: FeatureSpace | None = None
    test: PairwiseTest | None = None
    tested: IntArray = field(default_factory=_no_clients)

    def relabelled(self, mapping: Sequence[int] | IntArray) -> ClusterResult:
        """Return the same clusters with cluster c named ``mapping[c]``, a permutation."""
        names = np.asarray(mapping, np.int64)
        if not np.array_equal(np.sort(names), np.arange(self.clusters)):
            raise ValueError(
                f"mapping: {names.tolist()}; allowed: a permutation of 0 to {self.clusters - 1}"
            )
        centroids = self.centroids
        if centroids is not None:
            moved = np.empty_like(centroids)
            moved[names] = centroids
            centroids = moved
        return replace(self, assignment=names[self.assignment], centroids=centroids)

    def aligned(self, old: Sequence[int] | IntArray) -> ClusterResult:
        """Renumber so that as many clients as possible keep the cluster of `old` (-1: none).

        With fewer clusters than `old` had, numbers are kept as far as they are still there.
        """
        before = np.asarray(old, np.int64)
        before = np.where(before < self.clusters, before, -1)
        # Every number once more, so that the mapping covers clusters that are empty.
        padded_old = np.append(before, np.full(self.clusters, -1))
        padded_new = np.append(self.assignment, np.arange(self.clusters))
        return self.relabelled(label_mapping(padded_old, padded_new))

    def apart(self, level: float = 0.05) -> dict[str, float] | None:
        """Share of pairs told apart within and between clusters; None without a test."""
        if self.test is None:
            return None
        where = self.assignment[self.tested]
        same = where[:, None] == where[None, :]
        apart = self.test.told_apart(level)
        pairs = np.triu(np.ones_like(same), 1)
        shares = {}
        for name, chosen in (("within", same & pairs), ("between", ~same & pairs)):
            shares[name] = float(apart[chosen].mean()) if chosen.any() else 0.0
        return shares


def result_state(result: ClusterResult) -> dict[str, Any]:
    """Everything of a result but the test: what a server keeps to place clients after a resume."""
    state: dict[str, Any] = {
        "assignment": result.assignment,
        "clusters": result.clusters,
        "method": result.method,
        "silhouette": result.silhouette,
    }
    if result.space is not None:
        state |= {"centroids": result.centroids, "distances": result.distances}
        state["space"] = result.space.state_dict()
    return state


def result_from_state(state: Mapping[str, Any]) -> ClusterResult:
    """Make the result of a `result_state`."""
    space = FeatureSpace.from_state(state["space"]) if "space" in state else None
    return ClusterResult(
        assignment=state["assignment"],
        clusters=int(state["clusters"]),
        method=str(state["method"]),
        centroids=state.get("centroids"),
        distances=state.get("distances"),
        silhouette=state["silhouette"],
        space=space,
    )
