"""What rounds are for: a phase says what clients are sent and what becomes of their replies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.state import State
from strategies.cluster_map import ClusterMap
from strategies.sampling import Leg, Node
from strategies.validation import Refusal, Update


@dataclass
class Round:
    """One leg of a round under way.

    Attributes
    ----------
    number : int
        From 1.
    leg : {"train", "evaluate"}
    cluster_map : ClusterMap
    asked : dict of node id to Node
    cluster_sizes : int64 [C]
        Connected nodes of each cluster, asked or not.
    sent : float64 [C, d]
        Policy that each cluster's clients were sent.
    began : float
        When clients were asked, in seconds of `time.monotonic`.
    wanted : set of int
        Nodes that were asked for sums as well.
    sums : dict of node id to its list metrics
        Of those in `wanted` whose reply passed.
    means : dict of cluster to (float64 [d], weight), or None
        Eq. 7 as edge servers formed it; None where the cloud does.
    uncounted : set of int
        Nodes that replied, and whose update is in no edge server's aggregate.
    """

    number: int
    leg: Leg
    cluster_map: ClusterMap
    asked: dict[int, Node]
    cluster_sizes: IntArray
    sent: FloatArray
    began: float = field(default_factory=time.monotonic)
    wanted: set[int] = field(default_factory=set)
    sums: dict[int, dict[str, FloatArray]] = field(default_factory=dict)
    means: dict[int, tuple[FloatArray, float]] | None = None
    uncounted: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Addition:
    """What a phase adds to the message to a client.

    Attributes
    ----------
    config : mapping
        Further entries of its ConfigRecord.
    policy : float64 [d], optional
        In place of the policy of the client's cluster.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    policy: FloatArray | None = None


class Phase(Protocol):
    """What `strategies.hierarchical.Hierarchical` runs; what has a body here may be left out."""

    def turns(self, nodes: Sequence[Node]) -> Sequence[int] | None:
        """Rank of each connected node for training, the lowest being asked first; None: alike."""
        return None

    def addition(self, current: Round, node: Node) -> Addition:
        """What this client is sent besides the policy to start from."""
        return Addition()

    def inspect(self, current: Round, updates: list[Update]) -> tuple[list[Update], list[Refusal]]:
        """Refuse more of the training replies than is refused anyway."""
        return updates, []

    def lengths(self) -> Mapping[str, int]:
        """List metrics that a client may be asked for, and their lengths."""
        return {}

    def aggregate(self, current: Round, updates: list[Update]) -> BoolArray:
        """Move the policies by a round's accepted replies, at least one.

        Returns
        -------
        bool [C]: clusters that had a say.
        """
        ...

    def client_values(self) -> dict[int, FloatArray]:
        """What each client goes by, float64 [d]."""
        ...

    def state_dict(self) -> State:
        """What is kept beside `strategies.server_state.ServerState`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        return None
