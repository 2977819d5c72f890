"""Which node is which client of a run, and who of them is there."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from logging import INFO, WARNING

from flwr.app import Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from fedhlm_app.settings import SettingsError

INTRODUCTION_SECONDS = 180.0
"""Longest wait for nodes to say which data partition they are."""
LATE_SECONDS = 10.0
"""Longest wait for one that turned up later."""
PROGRESS_SECONDS = 15.0
"""How often it is said for whom the start waits."""


class Roster:
    """Nodes and the clients that they named; Flower's own node ids are random.

    Parameters
    ----------
    size : int
        Clients of the run, numbered from 0.

    Attributes
    ----------
    clients, nodes : dict
        The client of each node that named one, and the last node of each client.
    absent : list of int
        Clients that were not connected when nodes were last looked for.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.clients: dict[int, int] = {}
        self.nodes: dict[int, int] = {}
        self.absent: list[int] = []
        self._again: dict[int, tuple[float, float]] = {}
        self._grid: Grid | None = None

    def wait(self, grid: Grid) -> list[int]:
        """Wait for the run's clients to say who they are; those that did.

        Raises
        ------
        SettingsError
            A simulation has fewer nodes than the run has clients.
        """
        clients, began = self.size, time.monotonic()
        told = began
        self._grid, found = grid, list[int]()
        while True:
            now = time.monotonic()
            left = began + INTRODUCTION_SECONDS - now
            nodes = list(grid.get_node_ids())
            found += self.identify(nodes, max(left, 1.0))
            if self.nodes and isinstance(grid, InMemoryGrid):
                self._refuse_too_few(len(list(grid.get_node_ids())))
            if len(self.nodes) >= clients or left <= 0:
                break
            if now - told >= PROGRESS_SECONDS:
                told = now
                here = len(self.nodes)
                log(INFO, "%d of %d clients are here, at most %.0f s more", here, clients, left)
            time.sleep(0.2)
        self.look(nodes)
        if self.absent:
            words = "clients %s are not here: the run goes on without them until they come"
            log(WARNING, words, numbers(self.absent))
        else:
            log(INFO, "%d of %d clients are here", len(self.nodes), clients)
        return found

    def _refuse_too_few(self, nodes: int) -> None:
        """End a simulation for which Flower made too few nodes: no others will come."""
        if nodes < self.size:
            raise SettingsError(
                f"setting 'clients' = {self.size}: this simulation has {nodes} SuperNodes; give "
                f'flwr run --federation-config "num-supernodes={self.size}", or set clients to '
                f"{nodes} at most"
            )

    def identify(self, nodes: Sequence[int], seconds: float) -> list[int]:
        """Ask unknown nodes for their client; silent ones are asked again ever more rarely."""
        now = time.monotonic()
        unknown = [
            node
            for node in nodes
            if node not in self.clients and self._again.get(node, (0.0, 0.0))[0] <= now
        ]
        if not unknown:
            return []
        found = []
        for reply in self.query(unknown, RecordDict(), "introduction", seconds):
            node = reply.metadata.src_node_id
            client = _client_of(reply, self.size)
            if client is None:
                log(WARNING, "node %s named no client of this run", node)
                continue
            self.clients[node], self.nodes[client] = client, node
            found.append(client)
        for node in unknown:
            if node not in self.clients:
                wait = max(1.0, 2 * self._again.get(node, (0.0, 0.0))[1])
                self._again[node] = (time.monotonic() + wait, wait)
        return found

    def look(self, nodes: Sequence[int]) -> None:
        """See who of the run's clients is connected."""
        here = {self.clients.get(node) for node in nodes}
        self.absent = [client for client in range(self.size) if client not in here]

    def query(
        self, nodes: Sequence[int], content: RecordDict, group: str, seconds: float
    ) -> list[Message]:
        """Answers without an error; the others are named in the log."""
        if self._grid is None or not nodes:
            return []
        messages = [Message(content, node, MessageType.QUERY, group_id=group) for node in nodes]
        good = []
        for reply in self._grid.send_and_receive(messages, timeout=seconds):
            if reply.has_error():
                node = reply.metadata.src_node_id
                log(WARNING, "node %s failed at %s: %s", node, group, reply.error)
            else:
                good.append(reply)
        return good


def _client_of(reply: Message, clients: int) -> int | None:
    """The client a reply names; None where it names none of the run's."""
    metrics = reply.content.metric_records.get("metrics")
    client = None if metrics is None else metrics.get("client")
    return client if isinstance(client, int) and 0 <= client < clients else None


def numbers(clients: Collection[int], most: int = 20) -> str:
    """Clients' numbers for a log, so many at most."""
    more = f" and {len(clients) - most} more" if len(clients) > most else ""
    return ", ".join(map(str, sorted(clients)[:most])) + more
