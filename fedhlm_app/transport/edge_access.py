"""The way to a cluster's edge server: a process at an address, or an actor of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from fedhlm_app.settings import Settings
from fedhlm_app.transport.actor_names import edge_actor_name
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.llm_access import link_to
from fedhlm_app.transport.transports import RayTransport
from hlm.transport import Transport


def served_edge(settings: Settings, run: int, cluster: int, timeout: float) -> HttpTransport:
    """The link to the edge server that is served for a cluster, in the name of a run.

    Parameters
    ----------
    settings : Settings
        With `edge-addresses`.
    run : int
        Flower's number of it.
    cluster : int
        From 0.
    timeout : float
        Seconds to wait for an answer.

    Raises
    ------
    SettingsError
        As `link_to`.
    """
    address = settings.edges[cluster].rstrip("/")
    return link_to(settings, "edge-addresses", f"{address}/edge/{run}", timeout)


def edge_link(settings: Settings, run: int, timeout: float) -> Callable[[int], Transport]:
    """Cluster number to the transport of its edge server.

    Parameters
    ----------
    settings : Settings
        Of the run.
    run : int
        Flower's number of it.
    timeout : float
        Seconds to wait for an answer.
    """

    @cache
    def link(cluster: int) -> Transport:
        if settings.edges:
            return served_edge(settings, run, cluster, timeout)
        return RayTransport(edge_actor_name(run, cluster), timeout)

    return link
