"""The edge server of a cluster: what peers had verified, for others who are in the same place.

A device asks about contexts; entries of *other* devices whose contexts pass a gate form the
centroid of eq. 9, and eq. 10 decides (`peer-mode` ``context``). In ``paper`` mode the peers are
the other devices' drafts at the same step, verified or not. What the own cluster cannot decide
may be put to neighbouring clusters. Every answer is a proposal that audits hold to account
(`servers.reputation`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hlm.peers import cosine, degenerate, distance_of_cosine
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
from servers.consensus import NO_TOKEN, ConsensusRule, Contributions, consensus
from servers.edge_index import IndexSize, SketchIndex
from servers.reputation import Reputation

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Sketches = NDArray[np.uint8]

NOBODY = -1
MOST_STEPS = 4096
"""Steps of which drafts are remembered in `paper` mode."""


class Neighbour(Protocol):
    """Another cluster's edge server, however it is reached."""

    def exchange(self, payload: bytes) -> bytes:
        """Send a query, return the reply; ConnectionError or TimeoutError when there is none."""
        ...


@dataclass(frozen=True)
class EdgeConfig:
    """How an edge server decides, and what it may hold.

    Attributes
    ----------
    mode : {"context", "paper"}
        `peer-mode`.
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

    mode: Literal["context", "paper"] = "context"
    similarity: float = 0.9
    context_gate: float = 0.95
    reuse_gate: float = 0.98
    min_peers: int = 2
    trust_limit: float = 0.5
    key_bytes: int = 32
    neighbours_searched: int = 32
    open_rows: int = 1024
    max_clients: int = 4096
    deferred: bool = False
    size: IndexSize = field(default_factory=IndexSize)

    def __post_init__(self) -> None:
        if self.mode not in ("context", "paper"):
            raise ValueError(f"mode = {self.mode!r}: allowed are context, paper")
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


@dataclass(frozen=True)
class _Question:
    keys: Sketches
    drafts: IntArray
    found: Contributions


@dataclass(frozen=True)
class _News:
    """One verified or unverified token, ready to be taken in."""

    client: int
    key: Sketches
    token: int
    verified: bool
    question: Contributions | None = None
    draft: int = NO_TOKEN


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
    neighbours : sequence of Neighbour
        Asked in this order about what the own cluster cannot decide.
    limits : Limits
        Largest message read.
    """

    def __init__(
        self,
        cluster: int,
        embeddings: NDArray[np.floating],
        config: EdgeConfig | None = None,
        members: Collection[int] | None = None,
        neighbours: Sequence[Neighbour] = (),
        limits: Limits | None = None,
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
        self.stats = EdgeStats()
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        config = self.config
        self.index = SketchIndex(config.key_bytes, config.size)
        self.reputation = Reputation(config.trust_limit)
        self._known: set[int] = set()
        self._questions: dict[int, OrderedDict[int, _Question]] = {}
        self._inbox: dict[int, list[_News]] = {}
        self._drafts: dict[int, dict[int, int]] = {}  # paper mode: step -> client -> token
        self._draft_inbox: list[tuple[int, int, int]] = []
        bits = 8 * config.key_bytes
        self._gate = distance_of_cosine(config.context_gate, bits)
        reuse = distance_of_cosine(config.reuse_gate, bits)
        stepped = config.mode == "paper"
        # By step there is no context that would justify another token than one's own.
        self._rule = ConsensusRule(
            config.similarity, -1 if stepped else reuse, 1 if stepped else config.min_peers
        )

    def handle(self, payload: bytes) -> bytes:
        """Answer one message.

        Raises
        ------
        WireError
            When the bytes are no valid query, or not one for this server.
        """
        query = decode_edge_query(payload, self.limits)
        with self._lock:
            self._check(query)
            if not query.between:
                self._known.add(query.client)
                self.reputation.reporters = max(1, min(2, len(self._known) - 1))
                self._take_in(query)
            found = self._find(query)
            tokens = self._decide(query, found)
            if not query.between:
                self._remember(query, found)
            self.stats.rows += len(tokens)
        outcomes = np.where(tokens == NO_TOKEN, NOT_RESOLVED, RESOLVED_BY_PEERS)
        if not query.between:
            self._ask_neighbours(query, tokens, outcomes)
        with self._lock:
            self.stats.by_peers += int((outcomes == RESOLVED_BY_PEERS).sum())
            self.stats.by_neighbours += int((outcomes == RESOLVED_BY_NEIGHBOUR).sum())
        return encode_edge_reply(EdgeReply(outcomes.astype(np.int64), tokens), query)

    def publish(self) -> None:
        """Let time pass: deferred entries become visible, old ones leave. Call once a round."""
        with self._lock:
            for client in sorted(self._inbox):
                self._apply(self._inbox[client])
            for client, step, token in sorted(self._draft_inbox, key=lambda item: item[0]):
                self._drafts.setdefault(step, {})[client] = token
            self._inbox, self._draft_inbox = {}, []
            self.index.tick()

    def clear(self) -> None:
        """Forget everything, as a restart does."""
        with self._lock:
            self._forget()

    @property
    def memory(self) -> int:
        """Bytes of the index and of remembered questions and news, apart from Python's own."""
        key = self.config.key_bytes + 64
        questions = sum(
            len(one.drafts) * key + 32 * len(one.found.rows)
            for asked in self._questions.values()
            for one in asked.values()
        )
        return self.index.memory + questions + key * sum(map(len, self._inbox.values()))

    def _check(self, query: EdgeQuery) -> None:
        if query.vocab > len(self.embeddings):
            raise InvalidField(
                f"vocab={query.vocab}: this edge server knows {len(self.embeddings)} tokens"
            )
        stepped = self.config.mode == "paper"
        if len(query.drafts) and stepped != (query.steps is not None):
            raise InvalidField(f"peer-mode {self.config.mode}: steps must be given in paper only")
        for keys in (query.keys, query.share.keys):
            if len(keys) and not stepped and keys.shape[1] != self.config.key_bytes:
                raise InvalidField(
                    f"keys are {keys.shape[1]} bytes wide; this edge server's have "
                    f"{self.config.key_bytes}"
                )
        if query.between:
            return
        if self.members is not None and query.client not in self.members:
            raise InvalidField(f"client={query.client} is no member of cluster {self.cluster}")
        if query.client not in self._known and len(self._known) >= self.config.max_clients:
            raise InvalidField(f"client={query.client}: this edge server has all it can serve")

    def _find(self, query: EdgeQuery) -> Contributions:
        """Tokens of other clients that count for this query."""
        if query.steps is not None:
            return self._find_by_step(query)
        near = self.index.nearest(query.keys, self.config.neighbours_searched)
        rows, places = np.nonzero(near.distances <= self._gate)
        slots, distances = near.slots[rows, places], near.distances[rows, places]
        clients = self.index.clients[slots]
        asker = NOBODY if query.between else query.client
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

    def _find_by_step(self, query: EdgeQuery) -> Contributions:
        asker = NOBODY if query.between else query.client
        steps = np.zeros(0, np.int64) if query.steps is None else query.steps
        peers = [
            (row, client, token)
            for row, step in enumerate(steps.tolist())
            for client, token in sorted(self._drafts.get(step, {}).items())
            if client != asker
        ]
        rows, clients, tokens = np.array(peers, np.int64).reshape(-1, 3).T
        return Contributions(rows, clients, tokens, np.zeros(len(rows), np.int64))

    def _decide(self, query: EdgeQuery, found: Contributions) -> IntArray:
        asker = NOBODY if query.between else query.client
        trust = [self.reputation.trusts(asker, client) for client in found.clients.tolist()]
        trusted = np.array(trust, np.bool_)
        return consensus(self.embeddings, query.drafts, found, trusted, self._rule)

    def _ask_neighbours(self, query: EdgeQuery, tokens: IntArray, outcomes: IntArray) -> None:
        """Fill in what neighbouring clusters decide; the lock is not held meanwhile."""
        for neighbour in self.neighbours:
            open_rows = np.flatnonzero(tokens == NO_TOKEN)
            if not len(open_rows):
                return
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
            except (ConnectionError, TimeoutError, WireError):
                with self._lock:
                    self.stats.neighbour_failures += 1
                continue
            with self._lock:
                self.stats.between_bytes += len(payload) + len(answer)
            decided = reply.outcomes != NOT_RESOLVED
            tokens[open_rows[decided]] = reply.tokens[decided]
            outcomes[open_rows[decided]] = RESOLVED_BY_NEIGHBOUR

    def _remember(self, query: EdgeQuery, found: Contributions) -> None:
        """Keep the question until its verified tokens come, within bounds."""
        if not len(query.drafts):
            return
        if query.steps is not None:
            self._note_drafts(query)
            return
        asked = self._questions.setdefault(query.client, OrderedDict())
        asked.pop(query.number, None)
        asked[query.number] = _Question(query.keys, query.drafts, found)
        held = sum(len(question.drafts) for question in asked.values())
        while held > self.config.open_rows:
            held -= len(asked.popitem(last=False)[1].drafts)

    def _note_drafts(self, query: EdgeQuery) -> None:
        steps = np.zeros(0, np.int64) if query.steps is None else query.steps
        for step, draft in zip(steps.tolist(), query.drafts.tolist(), strict=True):
            if step >= MOST_STEPS:
                self.stats.refused += 1
            elif self.config.deferred:
                self._draft_inbox.append((query.client, step, draft))
            else:
                self._drafts.setdefault(step, {})[query.client] = draft
        del self._draft_inbox[: -self.config.size.capacity]

    def _take_in(self, query: EdgeQuery) -> None:
        """Turn what a client shared into entries and audits, now or at the next `publish`."""
        if not len(query.share) or self.config.mode == "paper":
            return
        news = [*self._answers(query), *self._fresh(query)]
        self.stats.shared += len(news)
        if not self.config.deferred:
            self._apply(news)
            return
        waiting = self._inbox.setdefault(query.client, [])
        waiting += news
        # Nothing beyond the quota could stay in the index anyway.
        del waiting[: max(0, len(waiting) - self.config.size.quota)]

    def _answers(self, query: EdgeQuery) -> list[_News]:
        share, news = query.share, []
        asked = self._questions.get(query.client, OrderedDict())
        for number, row, token in zip(
            share.numbers.tolist(), share.rows.tolist(), share.answers.tolist(), strict=True
        ):
            question = asked.get(number)
            if question is None or row >= len(question.drafts):
                self.stats.refused += 1
                continue
            found, draft = question.found.of_row(row), int(question.drafts[row])
            news.append(_News(query.client, question.keys[row], token, True, found, draft))
        return self._usable(news)

    def _fresh(self, query: EdgeQuery) -> list[_News]:
        share = query.share
        return self._usable(
            [
                _News(query.client, key, int(token), bool(verified))
                for key, token, verified in zip(
                    share.keys, share.tokens, share.verified, strict=True
                )
            ]
        )

    def _usable(self, news: list[_News]) -> list[_News]:
        """Without keys that no context makes, such as those of NaN, and barred clients' news."""
        if not news:
            return news
        good = ~degenerate(np.stack([one.key for one in news]))
        self.stats.refused += int((~good).sum())
        return [
            one
            for one, fine in zip(news, good.tolist(), strict=True)
            if fine and one.client not in self.reputation.barred
        ]

    def _apply(self, news: list[_News]) -> None:
        news = self._usable(news)
        if not news:
            return
        for one in news:
            if one.question is not None:
                self._audit(one)
        self.index.add(
            np.stack([one.key for one in news]),
            np.array([one.client for one in news], np.int64),
            np.array([one.token for one in news], np.int64),
            np.array([one.verified for one in news], np.bool_),
        )

    def _audit(self, news: _News) -> None:
        """Compare what each peer would have answered with the token the LLM decided."""
        found = news.question
        if found is None or not len(found.rows):
            return
        alike = cosine(self.embeddings[found.tokens], self.embeddings[news.draft][None])
        would = (found.distances <= self._rule.reuse_distance) | (alike >= self._rule.similarity)
        for client, token in zip(
            found.clients[would].tolist(), found.tokens[would].tolist(), strict=True
        ):
            right = token == news.token
            self.stats.audits += 1
            self.stats.failed_audits += not right
            if self.reputation.note(client, news.client, right):
                self.index.drop_client(client)
