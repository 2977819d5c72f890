"""The edge server of a cluster: what peers had verified, for others who are in the same place.

A device asks about contexts; entries of *other* devices whose contexts pass a gate form the
centroid of eq. 9, and eq. 10 decides (`peer-mode` ``context``). In ``paper`` mode the peers are
the other devices' drafts at the same step, verified or not. What the own cluster cannot decide
may be put to neighbouring clusters. Every answer is a proposal that audits hold to account
(`servers.edge.reputation`). A device that only wants to know whether asking could help shows
fingerprints (`servers.edge.prints`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, IntArray
from hlm.peers.agreement import degenerate, distance_of_cosine
from hlm.peers.modes import PEER_MODES
from hlm.transport import LinkDown, Transport
from hlm.wire import InvalidField, Limits, WireError
from hlm.wire.edge import (
    NOT_RESOLVED,
    RESOLVED_BY_NEIGHBOUR,
    RESOLVED_BY_PEERS,
    EdgeQuery,
    EdgeReply,
    decode_edge_query,
    decode_edge_reply,
    encode_edge_query,
    encode_edge_reply,
)
from hlm.wire.edge_probe import (
    EdgeProbe,
    decode_common,
    decode_probe,
    encode_common,
    encode_probe,
    is_probe,
)
from hlm.wire.edge_update import (
    OUTCOMES,
    EdgeUpdate,
    decode_update,
    encode_aggregate,
    encode_outcome,
    is_update,
)
from servers.edge.averaging import Averaging
from servers.edge.config import EdgeConfig, EdgeStats
from servers.edge.consensus import NO_TOKEN, ConsensusRule, Contributions, consensus
from servers.edge.index import SketchIndex
from servers.edge.intake import Intake
from servers.edge.prints import NOBODY, FingerprintTable
from servers.edge.reputation import Reputation
from servers.edge.steps import StepDrafts


class EdgeServer:
    """Peers of one cluster.

    Parameters
    ----------
    cluster : int
        Number of the cluster.
    embeddings : ndarray [vocab, size]
        The small model's token embeddings, finite.
    config : EdgeConfig
        See there.
    members : collection of int or None
        Clients of the cluster; others are refused. None takes whoever comes.
    neighbours : sequence of Transport
        Other clusters' edge servers, asked in this order about what the own cannot decide.
    limits : Limits
        Largest message read.
    averaging : Averaging, optional
        Where the cluster's updates are averaged; None where the cloud does it.
    """

    def __init__(
        self,
        cluster: int,
        embeddings: NDArray[np.floating],
        config: EdgeConfig | None = None,
        members: Collection[int] | None = None,
        neighbours: Sequence[Transport] = (),
        limits: Limits | None = None,
        averaging: Averaging | None = None,
    ) -> None:
        vectors = np.asarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ValueError(f"embeddings have shape {vectors.shape}: need finite [vocab, size]")
        self.cluster = cluster
        self.embeddings = vectors
        self.config = EdgeConfig() if config is None else config
        self.members = None if members is None else frozenset(members)
        self.neighbours = list(neighbours)
        self.limits = Limits() if limits is None else limits
        self.averaging = averaging
        self.stats = EdgeStats()
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        config = self.config
        bits = 8 * config.key_bytes
        mode = PEER_MODES[config.mode]
        self._stepped = not mode.by_context
        self._gate = distance_of_cosine(config.context_gate, bits)
        # By step there is no context that would justify another token than one's own.
        self._rule = ConsensusRule(
            config.similarity,
            -1 if self._stepped else distance_of_cosine(config.reuse_gate, bits),
            1 if self._stepped else config.min_peers,
            mode.load(),
        )
        self.index = SketchIndex(config.key_bytes, config.size)
        self.reputation = Reputation(config.trust_limit)
        self.prints = FingerprintTable(deferred=config.deferred, max_age=config.size.max_age)
        self._known: set[int] = set()
        self._devices: dict[int, str] = {}  # who asks as which client, by their tokens
        self._drafts = StepDrafts(config.deferred, config.size.capacity)
        self._intake = Intake(
            config, self.embeddings, self._rule, self.index, self.reputation, self.stats
        )

    def handle(self, payload: bytes, device: str = "") -> bytes:
        """Answer one message.

        Parameters
        ----------
        payload : bytes
            The message.
        device : str
            Name of who sends it, if a token proves one. Whoever is the first to ask as a client
            remains the only one who may.

        Raises
        ------
        WireError
            When the bytes are no valid query, probe or update, or not one for this server.
        """
        if is_update(payload):
            return self._take(decode_update(payload, self.limits), device)
        if is_probe(payload):
            return self._introduce(decode_probe(payload, self.limits), device)
        query = decode_edge_query(payload, self.limits)
        with self._lock:
            self._check(query)
            if not query.between:
                self._check_client(query.client, device)
                self._admit(query.client)
                if len(query.share) and not self._stepped:
                    self._intake.take_in(query)
            found = self._find(query)
            tokens = self._decide(query, found)
            own = 0 if query.between else self.index.count(query.client)
            empty = not self._stepped and len(self.index) == own
            if not query.between and query.steps is not None:
                self.stats.refused += self._drafts.note(query.client, query.steps, query.drafts)
            elif not query.between and len(query.drafts):
                self._intake.remember(query, found)
            self.stats.rows += len(tokens)
        outcomes = np.where(tokens == NO_TOKEN, NOT_RESOLVED, RESOLVED_BY_PEERS)
        if not query.between:
            empty &= self._ask_neighbours(query, tokens, outcomes)
        with self._lock:
            self.stats.by_peers += int((outcomes == RESOLVED_BY_PEERS).sum())
            self.stats.by_neighbours += int((outcomes == RESOLVED_BY_NEIGHBOUR).sum())
        return encode_edge_reply(EdgeReply(outcomes.astype(np.int64), tokens, empty), query)

    def _take(self, update: EdgeUpdate, device: str) -> bytes:
        with self._lock:
            strange = self.members is not None and update.client not in self.members
            if self.averaging is None or strange or not self._proven(update.client, device):
                return encode_outcome(OUTCOMES.index("wrong-client"))
            return encode_outcome(self.averaging.take(update))

    def open(self, number: int, summed: bool) -> None:
        """Begin a round of updates, see `Averaging.open`."""
        if self.averaging is not None:
            with self._lock:
                self.averaging.open(number, summed)

    def collect(self, number: int) -> bytes:
        """The round's aggregate for the cloud (`hlm.wire.edge_update`); empty without averaging."""
        if self.averaging is None:
            return b""
        with self._lock:
            return encode_aggregate(self.averaging.collect(number))

    def publish(self) -> None:
        """Let time pass: deferred entries become visible, old ones leave. Call once a round."""
        with self._lock:
            self._intake.publish()
            self._drafts.publish()
            for client in self.reputation.barred:
                self.prints.drop_client(client)
            self.prints.tick()
            self.index.tick()

    def clear(self) -> None:
        """Forget everything, as a restart does."""
        with self._lock:
            self._forget()

    @property
    def memory(self) -> int:
        """Bytes of the index and of remembered questions and news, apart from Python's own."""
        return self.index.memory + self._intake.memory

    def _check(self, query: EdgeQuery) -> None:
        if query.vocab > len(self.embeddings):
            raise InvalidField(
                f"vocab={query.vocab}: this edge server knows {len(self.embeddings)} tokens"
            )
        if len(query.drafts) and self._stepped != (query.steps is not None):
            raise InvalidField(f"peer-mode {self.config.mode}: steps tell peers by step alone")
        for keys in (query.keys, query.share.keys):
            if len(keys) and not self._stepped and keys.shape[1] != self.config.key_bytes:
                raise InvalidField(
                    f"keys are {keys.shape[1]} bytes wide; this edge server's have "
                    f"{self.config.key_bytes}"
                )

    def _proven(self, client: int, device: str) -> bool:
        """Whether a device may speak as this client; the first one is remembered."""
        return not device or self._devices.setdefault(client, device) == device

    def _check_client(self, client: int, device: str) -> None:
        if self.members is not None and client not in self.members:
            raise InvalidField(f"client={client} is no member of cluster {self.cluster}")
        if client not in self._known and len(self._known) >= self.config.max_clients:
            raise InvalidField(f"client={client}: this edge server has all it can serve")
        if not self._proven(client, device):
            raise InvalidField(f"client={client}: is another device")

    def _admit(self, client: int) -> None:
        self._known.add(client)
        self.reputation.reporters = max(1, min(2, len(self._known) - 1))

    def _introduce(self, probe: EdgeProbe, device: str) -> bytes:
        """Answer a probe: which of the device's fingerprints others show as well."""
        with self._lock:
            self.stats.probes += 1
            if probe.between:
                return encode_common(self.prints.common(NOBODY, probe.prints))
            self._check_client(probe.client, device)
            self._admit(probe.client)
            if probe.client not in self.reputation.barred:
                self.prints.show(probe.client, probe.prints)
            held = self.prints.held(probe.client)
            common = self.prints.common(probe.client, held)
        return encode_common(self._common_elsewhere(held, common))

    def _common_elsewhere(self, held: IntArray, common: BoolArray) -> BoolArray:
        """Add what neighbouring clusters' devices show; the lock is not held meanwhile."""
        for neighbour in self.neighbours:
            rest = np.flatnonzero(~common)
            if not len(rest):
                break
            payload = encode_probe(EdgeProbe(self.cluster, held[rest], between=True))
            try:
                answer = neighbour.exchange(payload)
                found = decode_common(answer, self.limits)
                if len(found) != len(rest):
                    raise InvalidField(f"{len(found)} flags for {len(rest)} fingerprints")
            except (LinkDown, WireError):
                with self._lock:
                    self.stats.neighbour_failures += 1
                continue
            with self._lock:
                self.stats.between_bytes += len(payload) + len(answer)
            common[rest[found]] = True
        return common

    def _find(self, query: EdgeQuery) -> Contributions:
        """Tokens of other clients that count for this query."""
        asker = NOBODY if query.between else query.client
        if query.steps is not None:
            return self._drafts.of_others(asker, query.steps)
        near = self.index.nearest(query.keys, self.config.neighbours_searched)
        rows, places = np.nonzero(near.distances <= self._gate)
        slots, distances = near.slots[rows, places], near.distances[rows, places]
        clients = self.index.clients[slots]
        excluded = [
            client
            for client in np.unique(clients).tolist()
            if client == asker or self.reputation.excludes(asker, client)
        ]
        counts = self.index.verified[slots] & ~np.isin(clients, excluded)
        counts &= ~degenerate(query.keys)[rows]
        return Contributions.nearest_of_each(
            rows[counts].astype(np.int64),
            clients[counts],
            self.index.tokens[slots[counts]],
            distances[counts],
        )

    def _decide(self, query: EdgeQuery, found: Contributions) -> IntArray:
        asker = NOBODY if query.between else query.client
        trust = [self.reputation.trusts(asker, client) for client in found.clients.tolist()]
        trusted = np.array(trust, np.bool_)
        return consensus(self.embeddings, query.drafts, found, trusted, self._rule)

    def _ask_neighbours(self, query: EdgeQuery, tokens: IntArray, outcomes: IntArray) -> bool:
        """Fill in what neighbouring clusters decide; the lock is not held meanwhile.

        Returns whether those that were asked hold nothing at all.
        """
        empty = True
        for neighbour in self.neighbours:
            open_rows = np.flatnonzero(tokens == NO_TOKEN)
            if not len(open_rows):
                break
            question = EdgeQuery(
                client=self.cluster,
                number=0,
                vocab=query.vocab,
                keys=query.keys[open_rows],
                drafts=query.drafts[open_rows],
                steps=None if query.steps is None else query.steps[open_rows],
                between=True,
            )
            payload = encode_edge_query(question)
            try:
                answer = neighbour.exchange(payload)
                reply = decode_edge_reply(answer, question, self.limits)
            except (LinkDown, WireError):
                with self._lock:
                    self.stats.neighbour_failures += 1
                continue
            with self._lock:
                self.stats.between_bytes += len(payload) + len(answer)
            empty &= reply.empty
            decided = reply.outcomes != NOT_RESOLVED
            tokens[open_rows[decided]] = reply.tokens[decided]
            outcomes[open_rows[decided]] = RESOLVED_BY_NEIGHBOUR
        return empty
