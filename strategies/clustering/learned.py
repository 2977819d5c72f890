"""The cluster map of a federation whose clusters were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hlm.arrays import IntArray
from strategies.cluster_map import ClientMap
from strategies.clustering.features import ClientProfile
from strategies.clustering.methods import nearest_cluster
from strategies.clustering.result import ClusterResult, result_from_state, result_state


class LearnedClusters(ClientMap):
    """Node -> client -> cluster, for clusters made by `cluster_clients`.

    A client that was not clustered is placed by `place` once its profile is known, and until then
    goes to ``client % num_clusters``.

    Parameters
    ----------
    clients : mapping of node id to client index
        As `ClientMap`.
    members : sequence of int
        Client of each entry of ``result.assignment``.
    result : ClusterResult
    """

    def __init__(
        self, clients: Mapping[int, int], members: Sequence[int], result: ClusterResult
    ) -> None:
        super().__init__(clients)
        self._adopt(members, result)

    @property
    def members(self) -> dict[int, int]:
        """Cluster by client, of all clients that were clustered or placed, in order of clients."""
        return dict(sorted(self._clusters.items()))

    def place(self, client: int, profile: ClientProfile) -> int:
        """Put a late or returning client into the nearest cluster, once there are learned ones.

        Raises
        ------
        ProfileError
            On a bad profile; the client then stays where it was.
        """
        if client < 0:
            raise ValueError(f"client: {client}; allowed: >= 0")
        if self.result.space is None:
            return self.cluster_of(client)
        self._clusters[client] = nearest_cluster(profile, self.result)
        return self._clusters[client]

    def cluster_of(self, client: int) -> int:
        """Cluster of a client (>= 0)."""
        return self._clusters.get(client, super().cluster_of(client))

    def recluster(self, members: Sequence[int], result: ClusterResult) -> LearnedClusters:
        """Return the map of a new clustering, its clusters numbered like the old ones.

        Clients that are not among `members` this time keep their place, where it still exists.
        """
        old = np.array([self._clusters.get(client, -1) for client in members], np.int64)
        new = LearnedClusters(self._clients, members, result.aligned(old))
        for client, cluster in self._clusters.items():
            if cluster < new.num_clusters:
                new._clusters.setdefault(client, cluster)
        return new

    def state_dict(self) -> dict[str, Any]:
        """Clusters and placements, without node ids, which change with every start."""
        clients = sorted(self._clusters)
        return {
            "version": 1,
            "members": np.array(self._members, np.int64),
            "clients": np.array(clients, np.int64),
            "clusters": np.array([self._clusters[client] for client in clients], np.int64),
            "result": result_state(self.result),
        }

    @classmethod
    def from_state(cls, clients: Mapping[int, int], state: Mapping[str, Any]) -> LearnedClusters:
        """Make the map of a `state_dict`."""
        if state.get("version") != 1:
            raise ValueError(f"state: version {state.get('version')}; allowed: 1")
        learned = cls(clients, state["members"].tolist(), result_from_state(state["result"]))
        placed: dict[int, int] = dict(
            zip(state["clients"].tolist(), state["clusters"].tolist(), strict=True)
        )
        learned._clusters.update(placed)
        return learned

    def _adopt(self, members: Sequence[int], result: ClusterResult) -> None:
        names: IntArray = np.asarray(members, np.int64)
        if len(names) != len(result.assignment):
            raise ValueError(
                f"members: {len(names)}; allowed: as many as clustered, {len(result.assignment)}"
            )
        if len(np.unique(names)) != len(names) or (len(names) and names.min() < 0):
            raise ValueError(f"members: {names.tolist()}; allowed: different clients, each >= 0")
        self.result, self.num_clusters = result, result.clusters
        self._members = names.tolist()
        self._clusters: dict[int, int] = dict(
            zip(self._members, result.assignment.tolist(), strict=True)
        )
