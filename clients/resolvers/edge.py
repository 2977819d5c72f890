"""The way to the edge server: ask it what peers had verified, tell it what the LLM decided.

With the opportunistic rule the device first shows fingerprints of its contexts, and asks and shares
only if peers meet the same ones. When the edge server does not answer, tokens go on to the LLM at
once, and the edge server is left alone for a while.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.records import Stage, Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from clients.resolvers.edge_exchange import EdgeExchange, EdgeResolverConfig, VerifiedToken
from clients.resolvers.hits import AUDIT_EDGE, AuditedTier, verified_rows
from clients.resolvers.introduction import Introduction
from clients.resolvers.opportunistic import OpportunisticRule
from hlm.arrays import BoolArray, IntArray
from hlm.peers.agreement import SketchMaker
from hlm.transport import Transport
from hlm.wire.edge import NOT_RESOLVED, RESOLVED_BY_NEIGHBOUR, RESOLVED_BY_PEERS, EdgeReply

Sketches = NDArray[np.uint8]

_EMPTY_WEIGHT = 0.25
"""What a miss counts while the edge server holds nothing of others."""


class EdgeResolver:
    """Asks peers by way of the edge server (stages `peer` and `edge`).

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    config : EdgeResolverConfig
        See there.
    sketches : SketchMaker or None
        Makes context keys; None where peers go by step.
    rule : OpportunisticRule or None
        Decides what is asked and shared, by what the device finds out about its peers; None asks
        and shares everything.
    audit_rate, max_false_hits : float
        Share of hits that the LLM decides all the same, and share of wrong hits that closes the
        tier (1: never).
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
        self.exchange = EdgeExchange(transport, config, 0 if sketches is None else sketches.bytes)
        self.config = config
        self.sketches = sketches
        self.rule = rule
        self.introduction: Introduction | None = None
        if rule is not None and sketches is not None:
            self.introduction = Introduction()
            rule.expect(0.0)
        self.tier = AuditedTier(audit_rate, max_false_hits, AUDIT_EDGE)
        self.needs_hidden = sketches is not None
        self.rows_asked = 0
        # Share of exploration in what waits to be shared.
        self._explored_waiting = 0.0

    @property
    def alone(self) -> bool:
        """Whether there are no peers to ask."""
        return self.config.cluster_size < 2

    def resolve(self, escalation: Escalation) -> Resolution[IntArray]:
        """Tokens that peers decide, apart from those that are audited."""
        questions = np.full((len(escalation.rows), 2), -1)
        resolution = Resolution.none(len(questions), questions)
        if self.alone or self.exchange.link.asleep:
            return resolution
        keys, usable = self._contexts(escalation)
        chosen, explored = self._wanted(escalation, keys)
        wanted = np.flatnonzero(usable & chosen)
        for begin in range(0, len(wanted), self.config.most_rows):
            part = wanted[begin : begin + self.config.most_rows]
            number = self.exchange.number
            reply = self._ask(escalation, part, keys, explored, resolution.traffic)
            if reply is None:
                break
            questions[part, 0], questions[part, 1] = number, np.arange(len(part))
            resolution.tokens[part] = reply.tokens
            resolution.stages[part[reply.outcomes == RESOLVED_BY_PEERS]] = Stage.PEER
            resolution.stages[part[reply.outcomes == RESOLVED_BY_NEIGHBOUR]] = Stage.EDGE
        withheld = self.tier.withheld(escalation, resolution.tokens)
        resolution.tokens[withheld >= 0] = -1
        resolution.stages[withheld >= 0] = Stage.UNRESOLVED
        return replace(resolution, withheld=withheld)

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[IntArray] | None
    ) -> Traffic:
        """Share what the LLM decided, count wrong hits, learn what asking is worth."""
        self.tier.judge(final, asked)
        verified = verified_rows(final)
        if self.rule is not None and asked is not None:
            llm = final.traffic
            self.rule.note_llm(llm.messages, llm.uplink + llm.downlink, int(verified.sum()))
        traffic = Traffic()
        if self.alone or self.sketches is None:
            return traffic
        arrived = final.stages != Stage.CACHE
        if self.introduction is not None and arrived.any():
            keys, usable = self._contexts(escalation.select(arrived))
            self.introduction.meet(keys[usable])
            if self.introduction.due:
                self._introduce(traffic)
        if verified.any():
            self._keep_for_sharing(escalation, final.tokens, verified, asked)
        if len(self.exchange.waiting) >= self.config.flush_rows:
            self._share(traffic)
        return traffic

    def flush(self) -> Traffic:
        """Send what waits to be shared, and what is to be shown; call at the end of a round."""
        traffic = Traffic()
        self._share(traffic)
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
        counts = np.array([self.exchange.number, hits.checked, hits.wrong])
        return {"counts": counts, **learnt, **shown}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `state` returned."""
        self.exchange.number, checked, wrong = (int(value) for value in state["counts"])
        self.tier.false_hits.checked, self.tier.false_hits.wrong = checked, wrong
        if self.rule is not None and "hits" in state:
            self.rule.restore(state)
        if self.introduction is not None and "introduction" in state:
            self.introduction.restore(state)

    def _contexts(self, escalation: Escalation) -> tuple[Sketches, BoolArray]:
        rows = len(escalation.rows)
        if self.sketches is None:
            return np.zeros((rows, 0), np.uint8), np.ones(rows, np.bool_)
        if escalation.hidden is None:
            raise ValueError("keys of contexts need the small model's hidden states")
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
        """Ask about some rows (int64); a share of them is `explored`."""
        drafts = escalation.draft.tokens.cpu().numpy()[part]
        steps = escalation.steps[part] if self.sketches is None else None
        before = traffic.edge
        reply = self.exchange.ask(keys[part], drafts, steps, traffic)
        if reply is None:
            return None
        self.rows_asked += len(part)
        if self.rule is not None:
            self.rule.note_edge(1, traffic.edge - before, len(part), explored)
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
        asked: Asked[IntArray] | None,
    ) -> None:
        """Queue the verified ones of these tokens (int64 [n]) for the edge server."""
        questions = np.full((len(tokens), 2), -1)
        if asked is not None and asked.resolution.note is not None:
            questions[asked.rows] = asked.resolution.note
        chosen = escalation.select(verified)
        keys, usable = self._contexts(chosen)
        wanted, self._explored_waiting = self._wanted(chosen, keys)
        rows = zip(tokens[verified].tolist(), questions[verified].tolist(), strict=True)
        for i, (token, (number, line)) in enumerate(rows):
            if number >= 0 or (usable[i] and wanted[i]):
                self.exchange.waiting.append(VerifiedToken(token, number, line, keys[i]))

    def _share(self, traffic: Traffic) -> None:
        """Send what waits to be shared, without a question."""
        before = traffic.edge
        if self.exchange.share(traffic) and self.rule is not None:
            self.rule.note_edge(1, traffic.edge - before, 0, self._explored_waiting)

    def _introduce(self, traffic: Traffic) -> None:
        """Show new fingerprints and hear which are common, as far as the budget goes."""
        rule, introduction = self.rule, self.introduction
        if rule is None or introduction is None or self.alone:
            return
        if rule.costs().least_hit_probability() > 1:
            return  # No share of contexts in common would make asking pay.
        shown, before = introduction.new, traffic.edge
        common = self.exchange.show(shown, introduction.held, rule.budget, traffic)
        if common is not None:
            introduction.note(shown, common)
            rule.expect(introduction.share)
            rule.note_edge(1, traffic.edge - before, 0, explored=1.0)
