"""A grid by which the server comes to know nodes before it sends them work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid


class MeetsNodes(Protocol):
    """Whoever wants to know of nodes first: `fedhlm_app.server.clusters.Clusters`."""

    def meet(self, nodes: Sequence[int]) -> None:
        """Introduce and place those of `nodes` that are not known yet."""
        ...


class IntroducingGrid:
    """A grid that has `clusters` meet the nodes before anyone else hears of them.

    Parameters
    ----------
    grid : Grid
        Does the work.
    clusters : MeetsNodes
        Asks them who they are.
    """

    def __init__(self, grid: Grid, clusters: MeetsNodes) -> None:
        self._grid, self._clusters = grid, clusters

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are connected."""
        nodes = list(self._grid.get_node_ids())
        self._clusters.meet(nodes)
        return nodes

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send and wait."""
        return self._grid.send_and_receive(messages, timeout=timeout)
