"""How an edge server decides and what it may hold, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from hlm.peers.modes import PEER_MODES
from servers.edge.index import IndexSize


@dataclass(frozen=True)
class EdgeConfig:
    """How an edge server decides, and what it may hold.

    Attributes
    ----------
    mode : str
        `peer-mode`, a key of `hlm.peers.modes.PEER_MODES`.
    similarity : float
        Theta of eq. 10, in [-1, 1].
    context_gate : float
        Cosine of contexts from which an entry counts at all, in [-1, 1].
    reuse_gate : float
        Cosine of contexts from which a peer's token may replace a different draft; at least
        `context_gate`.
    min_peers : int
        Clients that must stand behind a token, >= 1, unless one is trusted on its own.
    trust_limit : float
        See `Reputation.limit`.
    key_bytes : int
        Length of a context sketch.
    neighbours_searched : int
        Nearest entries looked at for each question.
    open_rows : int
        Rows of unanswered questions remembered for each client.
    max_clients : int
        Most clients served, where `members` are not given.
    deferred : bool
        Shared tokens become visible at the next `publish`, in an order that does not depend on
        when messages came: runs repeat exactly however clients are scheduled.
    size : IndexSize
        Bounds of the index.
    """

    mode: str = "context"
    similarity: float = 0.9
    context_gate: float = 0.98
    reuse_gate: float = 0.995
    min_peers: int = 2
    trust_limit: float = 0.5
    key_bytes: int = 8
    neighbours_searched: int = 32
    open_rows: int = 1024
    max_clients: int = 4096
    deferred: bool = False
    size: IndexSize = field(default_factory=IndexSize)

    def __post_init__(self) -> None:
        if self.mode not in PEER_MODES:
            raise ValueError(f"mode = {self.mode!r}: allowed are {', '.join(PEER_MODES)}")
        if not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity = {self.similarity}: a cosine lies in -1 .. 1")
        if not -1 <= self.context_gate <= self.reuse_gate <= 1:
            raise ValueError(
                f"context_gate = {self.context_gate}, reuse_gate = {self.reuse_gate}: need "
                "-1 <= context_gate <= reuse_gate <= 1"
            )
        for name in ("min_peers", "neighbours_searched", "open_rows", "max_clients"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")


@dataclass
class EdgeStats:
    """Counts since the server started."""

    rows: int = 0
    by_peers: int = 0
    by_neighbours: int = 0
    shared: int = 0
    refused: int = 0
    audits: int = 0
    failed_audits: int = 0
    between_bytes: int = 0
    neighbour_failures: int = 0
    probes: int = 0
