"""The edge servers of a run that are processes of their own, led over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import WARNING
from typing import Any

from flwr.common.logger import log

from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.transport.edge_access import served_edge
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.llm_access import CHECK_SECONDS, link_to
from hlm.transport import LinkDown
from hlm.wire import WireError

READY_SECONDS = 120.0
"""Longest wait for an edge server that is still loading its model."""


class ServedEdges:
    """What the cloud says to the edge servers at `edge-addresses`, one for each cluster.

    One that does not answer costs its cluster what it would have said; the next round it is told
    anew what it has to know.

    Parameters
    ----------
    settings : Settings
        Of the run.
    run : int
        Flower's number of it.
    """

    def __init__(self, settings: Settings, run: int) -> None:
        self.settings = settings
        self._links: list[HttpTransport] = [
            served_edge(settings, run, cluster, READY_SECONDS)
            for cluster in range(settings.clusters)
        ]
        self._pool = ThreadPoolExecutor(settings.clusters, thread_name_prefix="edge")

    def ensure(self, assignment: Sequence[int]) -> None:
        """Tell each edge server whom it serves; one that knows nothing of the run begins anew."""
        said = self.settings.handed_on()
        self._order(
            "begin",
            "its clients go on without",
            lambda cluster: {
                "settings": said,
                "cluster": cluster,
                "members": [client for client, own in enumerate(assignment) if own == cluster],
            },
        )

    def open(self, number: int, summed: Collection[int]) -> None:
        """Begin a round of updates; see `strategies.at_edge.EdgeServers`."""
        self._order(
            "open",
            "takes no updates in this round",
            lambda cluster: {"round": number, "summed": cluster in summed},
        )

    def collect(self, number: int) -> dict[int, bytes]:
        """A round's aggregates by cluster; see `strategies.at_edge.EdgeServers`."""
        lost = "has lost the round's updates"
        return self._order("collect", lost, lambda cluster: {"round": number})

    def publish(self) -> None:
        """Make the round's shared tokens visible (a round is over)."""
        self._order("publish", "starts empty", lambda cluster: {})

    def stop(self) -> None:
        """End the run there."""
        self._order("end", "keeps what it holds of this run", lambda cluster: {})
        self._pool.shutdown()

    def _order(
        self, order: str, otherwise: str, said: Callable[[int], Mapping[str, Any]]
    ) -> dict[int, bytes]:
        """Tell all at once; answers by cluster, without those that do not answer."""

        def tell(cluster: int) -> bytes:
            body = json.dumps(said(cluster)).encode()
            return self._links[cluster].ask("POST", f"/v1/{order}", body)

        asked = {
            cluster: self._pool.submit(tell, cluster) for cluster in range(self.settings.clusters)
        }
        found = {}
        for cluster, answer in asked.items():
            try:
                found[cluster] = answer.result()
            except (LinkDown, WireError) as error:
                log(WARNING, "edge server %d, %s: %s", cluster, otherwise, error)
        return found


def check_edges(settings: Settings) -> None:
    """Ask the edge servers at `edge-addresses` whether they are some, before anything is started.

    Raises
    ------
    SettingsError
        Naming the one that does not answer, or is none.
    """
    for address in settings.edges:
        link = link_to(settings, "edge-addresses", address, CHECK_SECONDS)
        try:
            kind = json.loads(link.ask("GET", "/edge/stats")).get("kind")
        except (LinkDown, WireError) as error:
            raise SettingsError(f"setting 'edge-addresses': {error}") from None
        except (ValueError, AttributeError):
            kind = None
        finally:
            link.close()
        if kind != "edge":
            raise SettingsError(
                f"setting 'edge-addresses': what answers at {address} is no edge server "
                "(`fedhlm serve edge`)"
            )
