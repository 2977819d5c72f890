"""One leg of a round: who is asked, what they are sent, and which replies count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.supercore import log

from hlm.arrays import FloatArray, IntArray
from hlm.state import State
from strategies.at_edge import AtEdge
from strategies.cluster_map import ClusterMap
from strategies.node_clusters import ReplyClusters
from strategies.outbox import Outbox
from strategies.phases import Phase, Round
from strategies.records import Failure, RoundFailed
from strategies.replies import log_replies, sort_replies, why_failed
from strategies.sampling import Leg, Participation
from strategies.validation import Refusal, Update

SILENT_ROUNDS = 3
"""So many rounds in a row that nobody answers end a run, and the first round of all."""


class Exchange:
    """Talks to the clients of one round after the other.

    Parameters
    ----------
    cluster_map : ClusterMap
    participation : Participation
    outbox : Outbox
    phase : Phase
    edges : AtEdge, optional
        Where edge servers form the means of clusters.

    Attributes
    ----------
    current : Round or None
        The leg under way; None where nobody was asked.
    """

    def __init__(
        self,
        cluster_map: ClusterMap,
        participation: Participation,
        outbox: Outbox,
        phase: Phase,
        edges: AtEdge | None = None,
    ) -> None:
        if not outbox.start.shared and isinstance(cluster_map, ReplyClusters):
            raise ValueError(
                f"clusters: {cluster_map.key!r}; allowed with personalisation='global' only: "
                "a client's cluster is known from its reply"
            )
        self.cluster_map, self.participation = cluster_map, participation
        self.outbox, self.phase, self.edges = outbox, phase, edges
        self.current: Round | None = None
        self._silent = 0

    def ask(
        self, leg: Leg, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Choose clients and write each its own message; none in a round without this leg."""
        self.current = None
        if not self.participation.takes_place(leg, server_round):
            return []
        self.outbox.state.adopt(arrays, self.cluster_map.num_clusters)
        self.current = self.open(leg, server_round, grid)
        messages = self.outbox.messages(self.current, self.phase, config)
        if self.edges is not None and leg == "train":
            self.edges.open(self.current)
        return messages

    def open(self, leg: Leg, server_round: int, grid: Grid) -> Round:
        """Choose clients, and what each cluster's are sent."""
        state = self.outbox.state
        turns = self.phase.turns if leg == "train" else None
        nodes, picks = self.participation.pick(grid, self.cluster_map, server_round, leg, turns)
        if self.cluster_map.num_clusters != state.tiers.num_clusters:
            state.recluster(self.cluster_map.num_clusters)
        sizes, sent = self._open([node.cluster for node in nodes])
        asked = {node.node_id: node for node in picks}
        return Round(server_round, leg, self.cluster_map, asked, sizes, sent)

    def _open(self, clusters: list[int]) -> tuple[IntArray, FloatArray]:
        """Get ready for a leg; sizes of clusters int64 [C] and what is sent float64 [C, d]."""
        state = self.outbox.state
        state.method.open(state.tiers.policy.size, state.tiers.num_clusters)
        rows = np.array(clusters, dtype=np.int64)
        sizes = np.bincount(rows, minlength=state.tiers.num_clusters)
        return sizes, self.outbox.starting_points()

    def sort(
        self, current: Round, replies: Iterable[Message]
    ) -> tuple[list[Update], list[Refusal], list[Failure]]:
        """Sort the replies of a leg into those that count, those refused, and who failed.

        Raises
        ------
        RoundFailed
            When none of a training can be used, unless all that happened is that nobody answered:
            then the policies stay, but for the first round and too many of them in a row.
        """
        schema = self.outbox.schema(current)
        if self.edges is not None:
            schema = replace(schema, layout=None)
        updates, refused, failed = sort_replies(replies, schema, current.asked)
        if self.edges is not None and current.leg == "train":
            size = self.outbox.state.tiers.policy.size
            updates, odd, lost = self.edges.settle(current, updates, size, self.phase.lengths())
            refused, failed = refused + odd, failed + lost
        elif current.leg == "train":
            updates, odd = self.phase.inspect(current, updates)
            updates, unnamed = self._learn_clusters(current, updates)
            refused += odd + unnamed
        log_replies(f"aggregate_{current.leg}", updates, refused, failed)
        if updates:
            self._silent = 0
        elif current.leg == "train":
            words = why_failed("training", current.number, refused, failed)
            self._silent += 1
            silent = not refused and all(failure.silent for failure in failed)
            if not silent or not self.outbox.state.rounds_done or self._silent >= SILENT_ROUNDS:
                raise RoundFailed(words)
            log(WARNING, "%s. The policies stay as they are", words)
        else:
            words = why_failed("evaluation", current.number, refused, failed)
            log(WARNING, "%s. The run goes on without its figures", words)
        return updates, refused, failed

    def _learn_clusters(
        self, current: Round, updates: list[Update]
    ) -> tuple[list[Update], list[Refusal]]:
        """Where clients name their clusters, take them from the replies."""
        if not isinstance(self.cluster_map, ReplyClusters):
            return updates, []
        kept, refused = self.cluster_map.learn(updates)
        clusters = self.cluster_map.clusters_of(list(current.asked))
        current.asked = {
            node_id: replace(node, cluster=cluster)
            for (node_id, node), cluster in zip(current.asked.items(), clusters, strict=True)
        }
        self.outbox.state.tiers.add_clusters(self.cluster_map.num_clusters)
        current.cluster_sizes, current.sent = self._open(clusters)
        return kept, refused

    def recluster(self, cluster_map: ClusterMap, members: Mapping[int, int] | None) -> None:
        """See `strategies.hierarchical.Hierarchical.recluster`."""
        self.cluster_map = cluster_map
        self.outbox.state.recluster(cluster_map.num_clusters, members)

    def state_dict(self) -> State:
        """What the phase keeps, and the clusters that clients named."""
        labels = {}
        if isinstance(self.cluster_map, ReplyClusters):
            labels = {"labels": list(self.cluster_map.labels)}
        return {**self.phase.state_dict(), **labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.phase.load_state_dict(state)
        if isinstance(self.cluster_map, ReplyClusters):
            self.cluster_map.labels = [int(label) for label in state["labels"]]
