"""Which client a node is and which cluster it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ClusterMap(Protocol):
    """What a hierarchical strategy asks about nodes.

    Flower's node ids are random, so a run repeats only if nodes are ordered by something that
    does not change: the client index (its data partition).
    """

    @property
    def num_clusters(self) -> int:
        """Number of clusters, at least 1."""
        ...

    def clusters_of(self, node_ids: Sequence[int]) -> list[int]:
        """Cluster of each node, in [0, num_clusters)."""
        ...

    def clients_of(self, node_ids: Sequence[int]) -> list[int]:
        """Client index of each node, -1 where it is not known."""
        ...


@runtime_checkable
class KnowsClients(Protocol):
    """A map that can tell where a client belongs that has not connected yet."""

    def cluster_of(self, client: int) -> int:
        """Cluster of a client (>= 0)."""
        ...


class ClientMap:
    """A map that knows which client a node is, and goes by that.

    Parameters
    ----------
    clients : mapping of node id to client index, optional
        Grows through `register` as nodes turn up.
    """

    num_clusters: int

    def __init__(self, clients: Mapping[int, int] | None = None) -> None:
        self._clients = dict(clients or {})

    def cluster_of(self, client: int) -> int:
        """Cluster of a client (>= 0), whether it was heard of or not."""
        return client % self.num_clusters

    def register(self, node_id: int, client: int) -> None:
        """Remember that `node_id` is `client` (>= 0)."""
        if client < 0:
            raise ValueError(f"client: {client}; allowed: >= 0")
        self._clients[node_id] = client

    def clusters_of(self, node_ids: Sequence[int]) -> list[int]:
        """Cluster of each node, ``node_id % num_clusters`` where its client is unknown."""
        pairs = zip(node_ids, self.clients_of(node_ids), strict=True)
        return [
            self.cluster_of(client) if client >= 0 else node % self.num_clusters
            for node, client in pairs
        ]

    def clients_of(self, node_ids: Sequence[int]) -> list[int]:
        """Client index of each node, -1 where unknown."""
        return [self._clients.get(node, -1) for node in node_ids]


class OneCluster(ClientMap):
    """Every node in one cluster: the flat federation; parameters as `ClientMap`."""

    num_clusters = 1


class AssignedClusters(ClientMap):
    """Clusters given by a table from client index to cluster.

    Parameters
    ----------
    clients : mapping of node id to client index
        As `ClientMap`.
    assignment : sequence of int
        Cluster of client 0, 1, ...; a client past its end goes to ``client % num_clusters``.
    num_clusters : int, optional
        By default one more than the largest cluster of `assignment`.
    """

    def __init__(
        self,
        clients: Mapping[int, int],
        assignment: Sequence[int],
        num_clusters: int | None = None,
    ) -> None:
        super().__init__(clients)
        count = max(assignment, default=0) + 1 if num_clusters is None else num_clusters
        if count < 1:
            raise ValueError(f"num_clusters: {count}; allowed: >= 1")
        for client, cluster in enumerate(assignment):
            if not 0 <= cluster < count:
                raise ValueError(
                    f"assignment[{client}]: {cluster}; allowed: 0 to {count - 1} (num_clusters)"
                )
        self.assignment = list(assignment)
        self.num_clusters = count

    def cluster_of(self, client: int) -> int:
        """Cluster of a client (>= 0), whether it was heard of or not."""
        known = client < len(self.assignment)
        return self.assignment[client] if known else super().cluster_of(client)


def round_robin(clients: int, clusters: int) -> list[int]:
    """Assignment ``client % clusters`` for `clients` clients."""
    if clusters < 1:
        raise ValueError(f"clusters: {clusters}; allowed: >= 1")
    return [client % clusters for client in range(clients)]


def shuffled(clients: int, clusters: int, seed: int) -> list[int]:
    """Random assignment; cluster sizes differ by at most 1."""
    generator = np.random.default_rng([seed, clusters])
    return [int(cluster) for cluster in generator.permutation(round_robin(clients, clusters))]


def contiguous(clients: int, clusters: int) -> list[int]:
    """Assignment by partition: neighbouring partitions share a cluster, sizes differ by at most 1.

    For example 5 clients in 2 clusters give ``[0, 0, 0, 1, 1]``.
    """
    if clusters < 1:
        raise ValueError(f"clusters: {clusters}; allowed: >= 1")
    return [client * clusters // max(clients, 1) for client in range(clients)]
