"""The way to the edge server: ask it what peers had verified, tell it what the LLM decided.

What the device learns travels with its next question, and a token that was asked about before
names that question rather than its context again. With the opportunistic rule the device first
shows fingerprints of its contexts, and asks and shares only if peers meet the same ones. When the
edge server does not answer, tokens go on to the LLM at once, and the edge server is left alone for
a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.records import BoolArray, IntArray, Stage, Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from clients.resolvers.hits import AUDIT_EDGE, AuditedTier, verified_rows
from clients.resolvers.introduction import Introduction
from clients.resolvers.link import Link
from clients.resolvers.opportunistic import OpportunisticRule
from hlm.peers.agreement import SketchMaker
from hlm.transport import LinkDown, Transport
from hlm.wire import WireError
from hlm.wire.edge import (
    MOST_NUMBERS,
    NOT_RESOLVED,
    RESOLVED_BY_NEIGHBOUR,
    RESOLVED_BY_PEERS,
    EdgeQuery,
    EdgeReply,
    EdgeShare,
    decode_edge_reply,
    encode_edge_query,
)
from hlm.wire.edge_probe import EdgeProbe, decode_common, encode_probe

Sketches = NDArray[np.uint8]
Reply = TypeVar("Reply")

_COMMON_HEADER = 2
"""Bytes of the answer to a probe beside its flags."""
_EMPTY_WEIGHT = 0.25
"""What a miss counts while the edge server holds nothing of others."""


@dataclass(frozen=True)
class EdgeResolverConfig:
    """What the messages of a device have in common.

    Attributes
    ----------
    client : int
        Number of the device.
    vocab : int
        Size of the shared vocabulary.
    cluster_size : int
        Clients of the cluster; alone, a device never asks.
    mode : {"context", "paper"}
        `peer-mode`.
    most_rows : int
        Most rows in one question.
    flush_rows : int
        Shared tokens that wait for a question before they travel on their own.
    """

    client: int
    vocab: int
    cluster_size: int
    mode: Literal["context", "paper"] = "context"
    most_rows: int = 512
    flush_rows: int = 64


@dataclass(frozen=True)
class Questions:
    """Where each of n rows was asked about.

    Attributes
    ----------
    numbers, lines : numpy.ndarray
        int64 [n], the question and the line in it; -1 where nothing was asked.
    """

    numbers: IntArray
    lines: IntArray


@dataclass(frozen=True)
class _Shared:
    """A verified token on its way to the edge server.

    It names the question it was asked in (number, line), or brings its context along.
    """

    token: int
    question: tuple[int, int] | None
    key: Sketches


class EdgeResolver:
    """Asks peers by way of the edge server (stages `peer` and `edge`).

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    config : EdgeResolverConfig
        See there.
    sketches : SketchMaker or None
        Makes context keys; needed in `context` mode.
    rule : OpportunisticRule or None
        Decides what is asked and shared, by what the device finds out about its peers; None asks
        and shares everything.
    audit_rate, max_false_hits : float
        Share of hits that the LLM decides all the same, and share of wrong hits that closes the
        tier (1: never).

    Raises
    ------
    ValueError
        If there is no `sketches` in `context` mode.
    """

    verifies = False

    def __init__(
        self,
        transport: Transport,
        config: EdgeResolverConfig,
        sketches: SketchMaker | None = None,
        rule: OpportunisticRule | None = None,
        audit_rate: float = 0.0,
        max_false_hits: float = 1.0,
    ) -> None:
        if config.mode == "context" and sketches is None:
            raise ValueError("peer-mode context needs a SketchMaker")
        self.link = Link(transport, "edge")
        self.config = config
        self.sketches = sketches
        self.rule = rule
        self.introduction: Introduction | None = None
        if rule is not None and config.mode == "context":
            self.introduction = Introduction()
            rule.expect(0.0)
        self.tier = AuditedTier(audit_rate, max_false_hits, AUDIT_EDGE)
        self.needs_hidden = config.mode == "context"
        self.rows_asked = 0
        self._number = 0
        # Bounded: while the edge server is away, only the newest tokens wait for it.
        self._waiting: deque[_Shared] = deque(maxlen=4 * config.most_rows)
        self._waiting_explored = 0.0

    @property
    def alone(self) -> bool:
        """Whether there are no peers to ask."""
        return self.config.cluster_size < 2

    def resolve(self, escalation: Escalation) -> Resolution[Questions]:
        """Tokens that peers decide, apart from those that are audited."""
        count = len(escalation.rows)
        questions = Questions(np.full(count, -1), np.full(count, -1))
        resolution = Resolution.none(count, questions)
        if self.alone or self.link.asleep:
            return resolution
        keys, usable = self._contexts(escalation)
        chosen, explored = self._wanted(escalation, keys)
        wanted = np.flatnonzero(usable & chosen)
        for begin in range(0, len(wanted), self.config.most_rows):
            part = wanted[begin : begin + self.config.most_rows]
            number = self._number
            reply = self._ask(escalation, part, keys, explored, resolution.traffic)
            if reply is None:
                break
            questions.numbers[part], questions.lines[part] = number, np.arange(len(part))
            resolution.tokens[part] = reply.tokens
            resolution.stages[part[reply.outcomes == RESOLVED_BY_PEERS]] = Stage.PEER
            resolution.stages[part[reply.outcomes == RESOLVED_BY_NEIGHBOUR]] = Stage.EDGE
        withheld = self.tier.withheld(escalation, resolution.tokens)
        resolution.tokens[withheld >= 0] = -1
        resolution.stages[withheld >= 0] = Stage.UNRESOLVED
        return replace(resolution, withheld=withheld)

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[Questions] | None
    ) -> Traffic:
        """Share what the LLM decided, count wrong hits, learn what asking is worth."""
        self.tier.judge(final, asked)
        verified = verified_rows(final)
        if self.rule is not None and asked is not None:
            llm = final.traffic
            self.rule.note_llm(llm.messages, llm.uplink + llm.downlink, int(verified.sum()))
        traffic = Traffic()
        if self.alone or self.config.mode == "paper":
            return traffic
        arrived = final.stages != Stage.CACHE
        if self.introduction is not None and arrived.any():
            keys, usable = self._contexts(escalation.select(arrived))
            self.introduction.meet(keys[usable])
            if self.introduction.due:
                self._introduce(traffic)
        if verified.any():
            self._keep_for_sharing(escalation, final.tokens, verified, asked)
        if len(self._waiting) >= self.config.flush_rows:
            self._share_waiting(traffic)
        return traffic

    def flush(self) -> Traffic:
        """Send what waits to be shared, and what is to be shown; call at the end of a round."""
        traffic = Traffic()
        self._share_waiting(traffic)
        introduction = self.introduction
        if introduction is not None and (len(introduction.new) or not introduction.common):
            self._introduce(traffic)
        return traffic

    def joined_cluster(self) -> None:
        """Start anew what was learnt about peers, because the peers are others now."""
        if self.rule is not None:
            self.rule.joined_cluster()
        if self.rule is not None and self.introduction is not None:
            self.introduction.start_over()
            self.rule.expect(0.0)

    def state(self) -> dict[str, NDArray[Any]]:
        """What outlives the process: question counter, audits, and what the rule learnt."""
        hits = self.tier.false_hits
        learnt = {} if self.rule is None else self.rule.state()
        shown = {} if self.introduction is None else self.introduction.state()
        return {"counts": np.array([self._number, hits.checked, hits.wrong]), **learnt, **shown}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `state` returned."""
        self._number, checked, wrong = (int(value) for value in state["counts"])
        self.tier.false_hits.checked, self.tier.false_hits.wrong = checked, wrong
        if self.rule is not None and "hits" in state:
            self.rule.restore(state)
        if self.introduction is not None and "introduction" in state:
            self.introduction.restore(state)

    def _contexts(self, escalation: Escalation) -> tuple[Sketches, BoolArray]:
        rows = len(escalation.rows)
        if self.config.mode == "paper" or self.sketches is None:
            return np.zeros((rows, 0), np.uint8), np.ones(rows, np.bool_)
        if escalation.hidden is None:
            raise ValueError("peer-mode context needs the small model's hidden states")
        return self.sketches.sketch(escalation.hidden.float().cpu().numpy())

    def _wanted(self, escalation: Escalation, keys: Sketches) -> tuple[BoolArray, float]:
        """Rows to ask and to share, bool [n], and the share of them that is exploration."""
        wanted, explored = np.ones(len(escalation.rows), np.bool_), 0.0
        if self.rule is not None:
            wrong = self.tier.false_hits.expected if self.tier.false_hits.checked else 0.0
            worth = self.rule.worth_asking(escalation.uncertainty, wrong)
            wanted = worth | self.rule.explored(keys, escalation.keys, wrong)
            explored = 1 - int(worth.sum()) / max(int(wanted.sum()), 1)
        if self.tier.closed:
            # Only what keeps the evidence coming, so that the tier can open again.
            wanted = wanted & self.tier.audited(escalation.keys)
        return np.asarray(wanted), explored

    def _ask(
        self,
        escalation: Escalation,
        part: IntArray,
        keys: Sketches,
        explored: float,
        traffic: Traffic,
    ) -> EdgeReply | None:
        drafts = escalation.draft.tokens.cpu().numpy()[part]
        steps = escalation.steps[part] if self.config.mode == "paper" else None
        reply = self._exchange(keys[part], drafts, steps, explored, traffic)
        if reply is None:
            return None
        self.rows_asked += len(part)
        if self.rule is not None:
            hits = reply.outcomes != NOT_RESOLVED
            # Peers that have just met fill the edge server first: misses then prove little.
            weight = _EMPTY_WEIGHT if reply.empty else 1.0
            self.rule.note_hits(escalation.uncertainty[part], hits, weight)
        return reply

    def _keep_for_sharing(
        self,
        escalation: Escalation,
        tokens: IntArray,
        verified: BoolArray,
        asked: Asked[Questions] | None,
    ) -> None:
        """Queue the verified ones of these tokens (int64 [n]) for the edge server."""
        numbers, lines = np.full((2, len(tokens)), -1)
        if asked is not None and asked.resolution.note is not None:
            numbers[asked.rows] = asked.resolution.note.numbers
            lines[asked.rows] = asked.resolution.note.lines
        chosen = escalation.select(verified)
        keys, usable = self._contexts(chosen)
        wanted, self._waiting_explored = self._wanted(chosen, keys)
        for i, place in enumerate(np.flatnonzero(verified).tolist()):
            number, token = int(numbers[place]), int(tokens[place])
            if number >= 0:
                self._waiting.append(_Shared(token, (number, int(lines[place])), keys[i]))
            elif usable[i] and wanted[i]:
                self._waiting.append(_Shared(token, None, keys[i]))

    def _share_waiting(self, traffic: Traffic) -> None:
        """Send what waits to be shared, without a question."""
        if self._waiting and not self.link.asleep:
            width = 0 if self.sketches is None else self.sketches.bytes
            nothing = np.zeros(0, np.int64)
            keys = np.zeros((0, width), np.uint8)
            self._exchange(keys, nothing, None, self._waiting_explored, traffic)

    def _introduce(self, traffic: Traffic) -> None:
        """Show new fingerprints and hear which are common, as far as the budget goes."""
        rule, introduction = self.rule, self.introduction
        if rule is None or introduction is None or self.link.asleep or self.alone:
            return
        if rule.costs().least_hit_probability() > 1:
            return  # No share of contexts in common would make asking pay.
        shown = introduction.new
        payload = encode_probe(EdgeProbe(self.config.client, shown))
        flags = introduction.held + len(shown)
        if len(payload) + _COMMON_HEADER + -(-flags // 8) > rule.budget:
            return
        before = traffic.edge
        common = self._send(payload, decode_common, traffic)
        if common is not None:
            introduction.note(shown, common)
            rule.expect(introduction.share)
            rule.note_edge(1, traffic.edge - before, 0, explored=1.0)

    def _exchange(
        self,
        keys: Sketches,
        drafts: IntArray,
        steps: IntArray | None,
        explored: float,
        traffic: Traffic,
    ) -> EdgeReply | None:
        """One message with all that waits to be shared; None if no answer came."""
        waiting = list(self._waiting)
        query = EdgeQuery(
            client=self.config.client,
            number=self._number,
            vocab=self.config.vocab,
            keys=keys,
            drafts=drafts,
            steps=steps,
            share=_edge_share(waiting, keys.shape[1]),
        )
        payload = encode_edge_query(query)
        before = traffic.edge
        reply = self._send(payload, lambda answer: decode_edge_reply(answer, query), traffic)
        if reply is None:
            return None
        self._number = (self._number + 1) % MOST_NUMBERS
        self._waiting.clear()
        if self.rule is not None:
            self.rule.note_edge(1, traffic.edge - before, len(drafts), explored)
        return reply

    def _send(
        self, payload: bytes, decode: Callable[[bytes], Reply], traffic: Traffic
    ) -> Reply | None:
        """The answer, if there is one; to be refused helps no more than to get none."""
        try:
            return self.link.exchange(payload, decode, traffic)
        except LinkDown:
            return None
        except WireError as error:
            self.link.failed(error, traffic)
            return None


def _edge_share(waiting: list[_Shared], width: int) -> EdgeShare:
    asked = [(*item.question, item.token) for item in waiting if item.question is not None]
    numbers, rows, answers = np.array(asked, np.int64).reshape(-1, 3).T
    new = [item for item in waiting if item.question is None]
    return EdgeShare(
        numbers=numbers,
        rows=rows,
        answers=answers,
        keys=np.array([item.key for item in new], np.uint8).reshape(len(new), width),
        tokens=np.array([item.token for item in new], np.int64),
        verified=np.ones(len(new), np.bool_),
    )
