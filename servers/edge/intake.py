"""How verified tokens enter an edge server: which are admitted, and what they say about others.

A shared token either comes with its context, or names a question that the device asked before.
Tokens of a question are audits: they are compared with what each peer would have answered
(`servers.edge.reputation`). All that is remembered for this is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import IntArray
from hlm.peers.agreement import degenerate
from hlm.wire.edge import EdgeQuery
from servers.edge.config import EdgeConfig, EdgeStats
from servers.edge.consensus import NO_TOKEN, ConsensusRule, Contributions
from servers.edge.index import SketchIndex
from servers.edge.reputation import Reputation

Sketches = NDArray[np.uint8]


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


class Intake:
    """Questions that wait for their answers, and tokens that wait to be published.

    Parameters
    ----------
    config : EdgeConfig
        Of the edge server.
    embeddings : ndarray of float32 [vocab, size]
        Token embeddings.
    rule : ConsensusRule
        By which peers' tokens decide.
    index : SketchIndex
        Where admitted tokens go.
    reputation : Reputation
        What audits are noted in.
    stats : EdgeStats
        Counts what is shared, refused and audited.
    """

    def __init__(
        self,
        config: EdgeConfig,
        embeddings: NDArray[np.float32],
        rule: ConsensusRule,
        index: SketchIndex,
        reputation: Reputation,
        stats: EdgeStats,
    ) -> None:
        self._config = config
        self._embeddings = embeddings
        self._rule = rule
        self._index = index
        self._reputation = reputation
        self._stats = stats
        self._questions: dict[int, OrderedDict[int, _Question]] = {}
        self._inbox: dict[int, list[_News]] = {}

    @property
    def memory(self) -> int:
        """Bytes of remembered questions and of tokens that wait, apart from Python's own."""
        key = self._config.key_bytes + 64
        questions = sum(
            len(one.drafts) * key + 32 * len(one.found.rows)
            for asked in self._questions.values()
            for one in asked.values()
        )
        return questions + key * sum(map(len, self._inbox.values()))

    def remember(self, query: EdgeQuery, found: Contributions) -> None:
        """Keep a question until its verified tokens come, within bounds."""
        asked = self._questions.setdefault(query.client, OrderedDict())
        asked.pop(query.number, None)
        asked[query.number] = _Question(query.keys, query.drafts, found)
        held = sum(len(question.drafts) for question in asked.values())
        while held > self._config.open_rows:
            held -= len(asked.popitem(last=False)[1].drafts)

    def take_in(self, query: EdgeQuery) -> None:
        """Turn what a client shared into entries and audits, now or at the next `publish`."""
        news = [*self._answers(query), *self._fresh(query)]
        self._stats.shared += len(news)
        if not self._config.deferred:
            self._apply(news)
            return
        waiting = self._inbox.setdefault(query.client, [])
        waiting += news
        # Nothing beyond the quota could stay in the index anyway.
        del waiting[: max(0, len(waiting) - self._config.size.quota)]

    def publish(self) -> None:
        """Admit what waits, in an order that does not depend on when messages came."""
        for client in sorted(self._inbox):
            self._apply(self._inbox[client])
        self._inbox = {}

    def _answers(self, query: EdgeQuery) -> list[_News]:
        share, news = query.share, []
        asked = self._questions.get(query.client, OrderedDict())
        for number, row, token in zip(
            share.numbers.tolist(), share.rows.tolist(), share.answers.tolist(), strict=True
        ):
            question = asked.get(number)
            if question is None or row >= len(question.drafts):
                self._stats.refused += 1
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
        self._stats.refused += int((~good).sum())
        return [
            one
            for one, fine in zip(news, good.tolist(), strict=True)
            if fine and one.client not in self._reputation.barred
        ]

    def _apply(self, news: list[_News]) -> None:
        news = self._usable(news)
        if not news:
            return
        for one in news:
            if one.question is not None:
                self._audit(one)
        self._index.add(
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
        alike = self._rule.alike(self._embeddings[found.tokens], self._embeddings[news.draft][None])
        would = (found.distances <= self._rule.reuse_distance) | (alike >= self._rule.similarity)
        for client, token in zip(
            found.clients[would].tolist(), found.tokens[would].tolist(), strict=True
        ):
            right = token == news.token
            self._stats.audits += 1
            self._stats.failed_audits += not right
            if self._reputation.note(client, news.client, right):
                self._index.drop_client(client)
