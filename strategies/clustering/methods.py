"""From profiles to clusters, and from a late client's profile to its cluster.

SciPy and scikit-learn are imported by what uses them: most runs assign clusters and learn none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from hlm.arrays import FloatArray, IntArray
from strategies.clustering.features import (
    ClientProfile,
    FeatureSpace,
    ProfileError,
    check_profiles,
    content_order,
)
from strategies.clustering.pairwise import PairwiseTest, pairwise_test
from strategies.clustering.result import ClusterResult

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

Method = Literal["classifier", "profile"]
METHODS: tuple[str, ...] = get_args(Method)


def cluster_clients(
    profiles: Sequence[ClientProfile], clusters: int, method: Method = "classifier", seed: int = 0
) -> ClusterResult:
    """Put clients into clusters.

    ``classifier``: `pairwise_test` on the profiles' rows; its distances are laid out in
    clusters - 1 dimensions (classical scaling: as many as the means of so many groups span, the
    rest is noise) and joined from the bottom up by Ward's criterion. A client with fewer than two
    rows goes to the nearest cluster. ``profile``: k-means on `FeatureSpace`,
    clients weighted by their prompts.

    Both depend on the set of profiles, not on their order; clusters are numbered in the
    order of their profiles' content.

    Parameters
    ----------
    profiles : sequence of ClientProfile
        At least `clusters`.
    clusters : int
        At least 1.
    method : {"classifier", "profile"}
    seed : int
        Of k-means' starts.

    Raises
    ------
    ProfileError
        On profiles that are not finite or differ in shape.
    ValueError
        On an unknown method, or fewer (usable) profiles than clusters.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; allowed: {', '.join(METHODS)}")
    if not 1 <= clusters <= len(profiles):
        raise ValueError(f"clusters: {clusters}; allowed: 1 to {len(profiles)} (profiles)")
    check_profiles(profiles)
    # One thread: sums then don't depend on the number of cores, and on a busy machine threads
    # that wait for each other take ten times as long as one.
    with threadpool_limits(limits=1):
        return _learn(profiles, clusters, method, seed)


def _learn(
    profiles: Sequence[ClientProfile], clusters: int, method: Method, seed: int
) -> ClusterResult:
    """Cluster sound profiles by `classifier` or `profile`."""
    order = content_order(profiles)
    ordered = [profiles[place] for place in order]
    space = FeatureSpace.fit(ordered)
    features = space.transform(ordered)
    test = None
    tested = np.arange(len(ordered))
    if method == "profile":
        # An average over one prompt lies far out by chance: unweighted, such clients would have a
        # cluster each, and all others share what is left.
        weights = np.array([profile.prompts for profile in ordered], np.float64)
        labels = _k_means(features, weights, clusters, seed)
        silhouette = _silhouette(features, labels)
    else:
        tested = np.flatnonzero([len(profile.rows) >= 2 for profile in ordered])
        if len(tested) < clusters:
            raise ProfileError(
                f"profiles: {len(tested)} with at least 2 rows; allowed: at least {clusters} "
                "(clusters) for method classifier"
            )
        test = pairwise_test([ordered[place].rows for place in tested])
        plane = classical_scaling(test.log_odds, max(1, clusters - 1))
        found = _agglomerate(plane, clusters)
        silhouette = _silhouette(plane, found)
        labels = _with_nearest(features, found, tested, clusters)
    labels = _by_first_appearance(labels, clusters)
    centroids = _centroids(features, labels, clusters)
    back = np.argsort(order)
    own = np.linalg.norm(features - centroids[labels], axis=1)
    listed, test = _in_listed_order(order[tested], test)
    return ClusterResult(
        assignment=labels[back],
        clusters=clusters,
        method=method,
        centroids=centroids,
        distances=own[back],
        silhouette=silhouette,
        space=space,
        test=test,
        tested=listed,
    )


def nearest_cluster(profile: ClientProfile, result: ClusterResult) -> int:
    """Cluster whose centroid is nearest to a late or returning client's profile.

    Raises
    ------
    ValueError
        If the clusters were not made from profiles.
    ProfileError
        If the profile is not finite or shaped otherwise than those clustered.
    """
    if result.space is None or result.centroids is None:
        raise ValueError(f"result: of method {result.method!r}; allowed: classifier, profile")
    check_profiles([profile])
    width = len(profile.mean) + 1
    features = 2 * len(profile.mean) + 1 + len(profile.histogram)
    if result.space.whitening.shape != (width, width) or len(result.space.centre) != features:
        raise ProfileError(
            f"profile: {len(profile.mean)} dims and {len(profile.histogram)} bins; allowed: those "
            f"of the clustering, {len(result.space.whitening) - 1} dims"
        )
    place = result.space.transform([profile])
    return int(np.linalg.norm(result.centroids - place, axis=1).argmin())


def classical_scaling(squared: FloatArray, dims: int) -> FloatArray:
    """Points whose squared distances come nearest to a matrix (Torgerson), float64 [n, <= dims].

    Parameters
    ----------
    squared : float64 [n, n]
        Symmetric, 0 on the diagonal; small negative values, as of an unbiased estimate, are
        welcome: clipping them would bias the distances of clients that are alike.
    dims : int
        Most dimensions; those without positive variance are left out.
    """
    from scipy.linalg import eigh

    count = len(squared)
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()
    first = max(0, count - dims)
    sizes, axes = eigh(-0.5 * centred, subset_by_index=(first, count - 1))
    kept = sizes > 0
    return np.asarray(axes[:, kept] * np.sqrt(sizes[kept]), np.float64)


def _k_means(features: FloatArray, weights: FloatArray, clusters: int, seed: int) -> IntArray:
    from sklearn.cluster import KMeans

    k_means = KMeans(n_clusters=clusters, n_init=10, random_state=seed)
    # Duplicates make k-means merge clusters; every cluster is then filled by distance.
    return _filled(np.asarray(_distinct_fit(k_means, features, weights)), features, clusters)


def _distinct_fit(k_means: KMeans, features: FloatArray, weights: FloatArray) -> IntArray:
    distinct, copies = np.unique(features, axis=0, return_inverse=True)
    if len(distinct) <= k_means.n_clusters:
        return np.asarray(copies, np.int64).ravel()
    return np.asarray(k_means.fit_predict(features, sample_weight=weights), np.int64)


def _filled(labels: IntArray, features: FloatArray, clusters: int) -> IntArray:
    """Give each cluster without a client the one that lies farthest out in a larger cluster."""
    labels = labels.copy()
    for empty in np.setdiff1d(np.arange(clusters), labels):
        sizes = np.bincount(labels, minlength=clusters)
        outward = np.linalg.norm(features - _centroids(features, labels, clusters)[labels], axis=1)
        outward[sizes[labels] < 2] = -1.0
        labels[outward.argmax()] = empty
    return labels


def _agglomerate(plane: FloatArray, clusters: int) -> IntArray:
    if plane.shape[1] == 0:
        # No pair differs in any direction: any division is as good as another.
        return np.arange(len(plane), dtype=np.int64) % clusters
    if clusters == len(plane):
        return np.arange(clusters, dtype=np.int64)
    from sklearn.cluster import AgglomerativeClustering

    joined = AgglomerativeClustering(n_clusters=clusters, linkage="ward").fit_predict(plane)
    return np.asarray(joined, np.int64)


def _with_nearest(
    features: FloatArray, found: IntArray, tested: IntArray, clusters: int
) -> IntArray:
    """Labels of all clients: those found, and the nearest centroid for the rest."""
    centroids = _centroids(features[tested], found, clusters)
    gaps = np.linalg.norm(features[:, None] - centroids[None], axis=2)
    labels = gaps.argmin(axis=1).astype(np.int64)
    labels[tested] = found
    return np.asarray(labels, np.int64)


def _by_first_appearance(labels: IntArray, clusters: int) -> IntArray:
    """Number clusters in the order in which they are first met."""
    _, first = np.unique(labels, return_index=True)
    names = np.empty(clusters, np.int64)
    names[labels[np.sort(first)]] = np.arange(clusters)
    return np.asarray(names[labels], np.int64)


def _centroids(features: FloatArray, labels: IntArray, clusters: int) -> FloatArray:
    sums = np.zeros((clusters, features.shape[1]))
    np.add.at(sums, labels, features)
    sizes = np.bincount(labels, minlength=clusters)
    return np.asarray(sums / np.maximum(sizes, 1)[:, None], np.float64)


def _silhouette(points: FloatArray, labels: IntArray) -> float | None:
    if points.shape[1] == 0 or not 2 <= len(np.unique(labels)) < len(labels):
        return None
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, labels))


def _in_listed_order(
    places: IntArray, test: PairwiseTest | None
) -> tuple[IntArray, PairwiseTest | None]:
    """Put the test's clients back into the order of the caller's list."""
    if test is None:
        return np.empty(0, np.int64), None
    sort = np.argsort(places)
    grid = np.ix_(sort, sort)
    test = replace(
        test,
        log_odds=test.log_odds[grid],
        accuracy=test.accuracy[grid],
        decisions=test.decisions[sort],
    )
    return places[sort].astype(np.int64), test
