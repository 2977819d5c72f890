"""An edge server as a Ray actor."""

from __future__ import annotations

from collections.abc import Callable, Collection

from servers.edge.server import EdgeServer


class EdgeActor:
    """What runs inside the Ray actor of one cluster's edge server.

    Parameters
    ----------
    build : callable
        Makes the server, in the actor's own process.
    """

    # Two edge servers that ask each other must not wait for each other.
    concurrency = 8
    retries = 0

    def __init__(self, build: Callable[[], EdgeServer]) -> None:
        self._server = build()

    def exchange(self, payload: bytes) -> bytes:
        """Answer one message (see `EdgeServer.handle`)."""
        return self._server.handle(payload)

    def serve(self, members: Collection[int]) -> None:
        """Answer these clients from now on, and no others."""
        self._server.members = frozenset(members)

    def open(self, number: int, summed: bool) -> None:
        """Begin a round of updates (see `EdgeServer.open`)."""
        self._server.open(number, summed)

    def collect(self, number: int) -> bytes:
        """The round's aggregate (see `EdgeServer.collect`)."""
        return self._server.collect(number)

    def publish(self) -> dict[str, int]:
        """End a round: what was shared becomes visible. Returns the server's counts."""
        self._server.publish()
        return dict(vars(self._server.stats))
