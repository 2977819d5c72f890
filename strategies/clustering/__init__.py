"""Clusters learned from clients' profiles: two-sample tests, k-means, and their quality."""

from strategies.clustering.features import ClientProfile, FeatureSpace, ProfileError
from strategies.clustering.learned import LearnedClusters
from strategies.clustering.methods import (
    METHODS,
    Method,
    cluster_clients,
    nearest_cluster,
)
from strategies.clustering.pairwise import PairwiseTest, pairwise_test
from strategies.clustering.reports import (
    adjusted_rand_index,
    label_mapping,
    purity,
)
from strategies.clustering.result import ClusterResult

__all__ = [
    "METHODS",
    "ClientProfile",
    "ClusterResult",
    "FeatureSpace",
    "LearnedClusters",
    "Method",
    "PairwiseTest",
    "ProfileError",
    "adjusted_rand_index",
    "cluster_clients",
    "label_mapping",
    "nearest_cluster",
    "pairwise_test",
    "purity",
]
