"""The edge servers of a run in this process, where neither actors nor addresses are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedhlm_app.hosting.edge import build_edge
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from hlm.transport import Transport
from servers.edge.server import EdgeServer

_PUBLISHED = -1
"""In place of a cluster: the end of a round."""


class EdgesHere:
    """An edge server for each cluster; none without peers.

    Parameters
    ----------
    settings : Settings
        Of the run.
    assigned : sequence of int
        The cluster of each client.

    Attributes
    ----------
    servers : list of EdgeServer
        By cluster.
    """

    def __init__(self, settings: Settings, assigned: Sequence[int]) -> None:
        self.servers: list[EdgeServer] = []
        self._heard: list[tuple[int, bytes]] = []
        if settings.peer_mode == "off":
            return
        count = settings.clusters
        for cluster in range(count):
            members = [client for client, own in enumerate(assigned) if own == cluster]
            self.servers.append(build_edge(settings, 0, cluster, members, count))
        if settings.inter_cluster:
            for server in self.servers:
                others = (other for other in self.servers if other is not server)
                server.neighbours = [_Link(other.handle) for other in others]

    def link(self, cluster: int) -> Transport:
        """A device's way to the edge server of a cluster."""
        return _Link(partial(self._take, cluster))

    def _take(self, cluster: int, payload: bytes) -> bytes:
        """What an edge server answers to a device's message."""
        self._heard.append((cluster, payload))
        return self.servers[cluster].handle(payload)

    def publish(self) -> None:
        """Make the round's shared tokens visible (a round is over)."""
        self._heard.append((_PUBLISHED, b""))
        for server in self.servers:
            server.publish()

    def state(self) -> dict[str, Any]:
        """All that devices have sent, which is what edge servers know."""
        return {
            "cluster": np.array([cluster for cluster, _ in self._heard], np.int64),
            "length": np.array([len(payload) for _, payload in self._heard], np.int64),
            "bytes": np.frombuffer(b"".join(payload for _, payload in self._heard), np.uint8),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Hear everything of a `state` again, in the same order."""
        ends, sent = np.cumsum(state["length"]), state["bytes"].tobytes()
        for cluster, length, end in zip(state["cluster"], state["length"], ends, strict=True):
            if cluster == _PUBLISHED:
                self.publish()
            else:
                self._take(int(cluster), sent[end - length : end])


class _Link(DirectTransport):
    """The way to an edge server, which writes no streams."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply."""
        return self._answer(payload)
