"""Eq. 7 in edge servers: devices leave updates there, the cloud fetches one aggregate a cluster.

In Flower a ClientApp always answers the ServerApp. Here that answer is an acknowledgement: the
figures of a report, and no policy and no sums. What is learned goes the other way, and its bytes
are counted: from the devices by themselves, from the edge servers here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from hlm.arrays import FloatArray
from hlm.wire import WireError
from hlm.wire.edge_update import OUTCOMES, EdgeAggregate, decode_aggregate
from strategies.phases import Round
from strategies.records import Failure
from strategies.validation import Refusal, Update

LOST = "its edge server lost the update"
"""Why a client failed whose edge server died, or did not answer."""


class EdgeServers(Protocol):
    """The edge servers of a run, one for each cluster."""

    def open(self, number: int, summed: Collection[int]) -> None:
        """Begin a round, from 1; clusters in `summed` are asked for sums and for no policy."""
        ...

    def collect(self, number: int) -> Mapping[int, bytes]:
        """A round's aggregate by cluster (`hlm.wire.edge_update`), of those that answer."""
        ...


@dataclass
class AtEdge:
    """What the cloud makes of aggregates.

    Parameters
    ----------
    servers : EdgeServers

    Attributes
    ----------
    tally : dict
        Of the last round: updates that were averaged, aggregates, and bytes of these.
    """

    servers: EdgeServers
    tally: dict[str, int] = field(default_factory=dict, init=False)

    def open(self, current: Round) -> None:
        """Tell edge servers that clients are about to be asked."""
        self.servers.open(
            current.number, {current.asked[node_id].cluster for node_id in current.wanted}
        )

    def settle(
        self, current: Round, updates: list[Update], size: int, lengths: Mapping[str, int]
    ) -> tuple[list[Update], list[Refusal], list[Failure]]:
        """Fetch the aggregates; what is in none keeps its figures, and a weight of 0.

        Parameters
        ----------
        current : Round
            Gets `means` and `sums`.
        updates : list of Update
            Acknowledgements that passed.
        size : int
            Numbers in a policy, d.
        lengths : mapping of metric to its length
            How sums are put together.
        """
        found = self._fetch(current.number, {0, size}, sum(lengths.values()))
        current.means = {
            c: (one.mean, float(one.weight)) for c, one in found.items() if len(one.mean)
        }
        within: dict[int, set[int]] = {c: set(one.clients.tolist()) for c, one in found.items()}
        settled, refused, failed = [], [], []
        for update in updates:
            cluster = current.asked[update.node_id].cluster
            if update.client in within.get(cluster, ()):
                settled.append(update)
                continue
            settled.append(replace(update, weight=0.0))
            current.wanted.discard(update.node_id)
            current.uncounted.add(update.node_id)
            reason = _reason(found.get(cluster), update.client)
            if reason:
                refused.append(Refusal(reason, update.node_id, update.client, "by its edge server"))
            else:
                failed.append(Failure(update.node_id, update.client, LOST, silent=True))
        nodes = {u.client: u.node_id for u in settled if u.node_id in current.wanted}
        for one in found.values():
            current.sums |= {
                nodes[client]: sums
                for client, sums in _by_client(one, lengths).items()
                if client in nodes
            }
        self.tally["updates"] = len(settled) - len(refused) - len(failed)
        return settled, refused, failed

    def _fetch(self, number: int, sizes: set[int], length: int) -> dict[int, EdgeAggregate]:
        """Aggregates that can be used; others are as if none had come."""
        found = {}
        sent = self.servers.collect(number)
        size = sum(len(payload) for payload in sent.values())
        self.tally = {"aggregates": len(sent), "bytes-aggregate": size}
        for cluster, payload in sent.items():
            try:
                one = decode_aggregate(payload)
            except WireError:
                continue
            parts = (one.mean, one.counts, *one.sums.values())
            if (
                one.number == number
                and len(one.mean) in sizes
                and all(len(sums) == length for sums in one.sums.values())
                and all(np.isfinite(part).all() for part in parts)
            ):
                found[cluster] = one
        return found


def _reason(one: EdgeAggregate | None, client: int) -> str:
    """Why an edge server refused a client's update; empty where it says nothing of it."""
    if one is None:
        return ""
    codes = one.reasons[one.refused == client]
    return OUTCOMES[codes[0]] if len(codes) else ""


def _by_client(one: EdgeAggregate, lengths: Mapping[str, int]) -> dict[int, dict[str, FloatArray]]:
    """List metrics of each client, such that adding them up gives the aggregate's.

    The first client of a contribution stands for the sums of all; what is known of each is its
    count, the first number of the first metric.
    """
    ends = np.cumsum(list(lengths.values()))[:-1]
    vectors: dict[int, FloatArray] = {}
    for contribution, total in one.sums.items():
        places = np.flatnonzero(one.contributions == contribution)
        for place in places.tolist():
            vector = np.zeros(len(total)) if place != places[0] else total.copy()
            vector[0] = one.counts[place]
            vectors[int(one.clients[place])] = vector
    return {
        client: dict(zip(lengths, np.split(vector, ends), strict=True))
        for client, vector in vectors.items()
    }
