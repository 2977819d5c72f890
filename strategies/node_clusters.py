"""Clusters of the nodes of any Flower app, of which the server knows the node ids and no more.

Flower 1.41 tells a ServerApp a node's id, and for a registered SuperNode its name; its node config
(``partition-id``) stays on the node. So clusters are dealt, given by node id, or named by the
clients in their replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from numbers import Integral

from flwr.supercore import log

from strategies.cluster_map import ClusterMap, OneCluster
from strategies.validation import Refusal, Update

Clusters = int | str | Mapping[int, int] | ClusterMap
MAX_LABELS = 1000
"""Most clusters that clients may name."""


class NodeClusters:
    """Clusters by node id; a node without one joins the smallest cluster and stays there.

    Parameters
    ----------
    assigned : mapping of node id to cluster
        Empty: nodes are dealt in turn, in the order of their ids.
    num_clusters : int, optional
        By default one more than the largest cluster of `assigned`.
    """

    def __init__(self, assigned: Mapping[int, int], num_clusters: int | None = None) -> None:
        given: Mapping[int, object] = assigned
        for node, named in given.items():
            if not isinstance(named, Integral):
                raise ValueError(f"clusters[{node}]: {named!r}; allowed: whole numbers from 0")
        count = max(assigned.values(), default=0) + 1 if num_clusters is None else num_clusters
        if count < 1:
            raise ValueError(f"clusters: {count}; allowed: >= 1")
        for node, cluster in assigned.items():
            if not 0 <= cluster < count:
                raise ValueError(f"clusters[{node}]: {cluster}; allowed: 0 to {count - 1}")
        self.assigned = dict(assigned)
        self._given = bool(assigned)
        self.num_clusters = count

    def clusters_of(self, node_ids: Sequence[int]) -> list[int]:
        """Cluster of each node."""
        sizes = [0] * self.num_clusters
        for cluster in self.assigned.values():
            sizes[cluster] += 1
        for node in sorted(set(node_ids) - self.assigned.keys()):
            cluster = sizes.index(min(sizes))
            self.assigned[node] = cluster
            sizes[cluster] += 1
            if self._given:
                log(WARNING, "node %d is in no cluster of the map: joins %d", node, cluster)
        return [self.assigned[node] for node in node_ids]

    def clients_of(self, node_ids: Sequence[int]) -> list[int]:
        """Return -1 for every node: client indices are not known."""
        return [-1] * len(node_ids)


class ReplyClusters:
    """Clusters that clients name in a metric of their training replies: whole numbers, any.

    The first one that a node names counts for the run. Whoever can make up clusters can give
    itself one of its own, and with it a whole cluster's say in eq. 8: for clients that are not
    trusted give a map.

    Parameters
    ----------
    key : str
        Name of the metric.
    """

    def __init__(self, key: str) -> None:
        if not key:
            raise ValueError("clusters: ''; allowed: the name of a metric of the replies")
        self.key = key
        self.labels: list[int] = []
        self._nodes: dict[int, int] = {}

    @property
    def num_clusters(self) -> int:
        """Clusters named so far, at least 1."""
        return max(1, len(self.labels))

    def clusters_of(self, node_ids: Sequence[int]) -> list[int]:
        """Cluster of each node; 0 for one that has not replied yet, which changes nothing."""
        return [self._nodes.get(node, 0) for node in node_ids]

    def clients_of(self, node_ids: Sequence[int]) -> list[int]:
        """Return -1 for every node: client indices are not known."""
        return [-1] * len(node_ids)

    def learn(self, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        """Take up the clusters that accepted replies name, and refuse replies that name none."""
        kept, refused = [], []
        for update in updates:
            label = update.metrics.get(self.key)
            known = update.node_id in self._nodes
            if not isinstance(label, int | float) or label != int(label):
                detail = f"metric {self.key!r}: {label}; allowed: a whole number, the cluster"
            elif not known and label not in self.labels and len(self.labels) >= MAX_LABELS:
                detail = f"metric {self.key!r}: {label}; allowed: {MAX_LABELS} clusters"
            else:
                if not known:
                    if label not in self.labels:
                        self.labels.append(int(label))
                        log(INFO, "cluster %d: %s = %d", len(self.labels) - 1, self.key, label)
                    self._nodes[update.node_id] = self.labels.index(int(label))
                kept.append(update)
                continue
            refused.append(Refusal("bad-metric", update.node_id, update.client, detail))
        return kept, refused


def cluster_map_of(clusters: Clusters | None) -> ClusterMap:
    """Make the cluster map that `clusters` means.

    Parameters
    ----------
    clusters : int, str, mapping or ClusterMap, optional
        So many clusters, nodes being dealt in turn in the order of their ids; the name of a
        metric by which clients name their cluster; a table from node id to cluster; a map of the
        caller's own; None: one cluster.

    Raises
    ------
    ValueError
        On anything else.
    """
    if clusters is None:
        return OneCluster()
    if isinstance(clusters, str):
        return ReplyClusters(clusters)
    if isinstance(clusters, int) and not isinstance(clusters, bool):
        return NodeClusters({}, clusters)
    if isinstance(clusters, Mapping):
        return NodeClusters(clusters)
    if isinstance(clusters, ClusterMap):
        return clusters
    raise ValueError(
        f"clusters: {clusters!r}; allowed: a number, a table from node id to cluster, the name "
        "of a metric of the replies, or a ClusterMap"
    )


def in_words(clusters: ClusterMap) -> str:
    """What a log says of a cluster map."""
    if isinstance(clusters, ReplyClusters):
        return f"as clients name them in metric {clusters.key!r}"
    if isinstance(clusters, OneCluster):
        return "1, flat like FedAvg: no clusters were given"
    return str(clusters.num_clusters)
