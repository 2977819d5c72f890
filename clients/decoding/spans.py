"""Texts that the LLM writes on: which of them, and when the device takes each back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.decoding.drafting import RouterConfig, draw_keys
from clients.decoding.read_ahead import ReadAhead
from clients.records import Stage, TextBatch, TokenRecords, Traffic, Way
from clients.resolvers.chain import Escalation, Resolution
from hlm.arrays import BoolArray, IntArray
from hlm.spans import TakeBack
from hlm.verification import Claim, Draft
from hlm.wire import NO_TOKEN

Look = Callable[[int, IntArray, BoolArray], tuple[IntArray, BoolArray]]
"""(depth, drafts int64 [n] up to there, rows bool [n]) -> the next drafts, and which are sure."""


class Streams(Protocol):
    """Whoever reads along for the router (`clients.resolvers.span_uplink`)."""

    def resolve(self, escalation: Escalation) -> Resolution[Any]:
        """Have rows verified, which opens streams; the next tokens of what is being written."""
        ...

    def listen(self, texts: TextBatch, rows: IntArray) -> IntArray:
        """The next tokens of texts, int64 [n]; `NO_TOKEN` of those that nobody writes."""
        ...

    def collect(self) -> Traffic:
        """What crossed the link for streams since."""
        ...

    def stop(self, sessions: IntArray) -> None:
        """Take texts back; those that nobody writes are left alone."""
        ...

    def finish(self) -> Traffic:
        """Take all back, wait until the server has heard of it; what crossed the link since."""
        ...


@dataclass(frozen=True)
class SpanRouting:
    """Escalations that open streams.

    Attributes
    ----------
    rule : TakeBack
        When a text is taken back.
    streams : Streams
        The resolver that opened them.
    drafts : bool
        Also draft where the rule keeps nothing, for whoever learns from drafts.
    """

    rule: TakeBack
    streams: Streams
    drafts: bool = True


class SpanRows:
    """Which texts of a batch the LLM writes.

    Parameters
    ----------
    routing : SpanRouting
        See there.
    reader : ReadAhead
        Reads them, with a draft less ahead than the rule looks at.
    sessions : numpy.ndarray
        int64 [texts].
    remaining : int
        Tokens that each text still lacks.
    ends : frozenset of int
        Tokens that end a text.
    """

    def __init__(
        self,
        routing: SpanRouting,
        reader: ReadAhead,
        sessions: IntArray,
        remaining: int,
        ends: frozenset[int],
    ) -> None:
        self.reader = reader
        self.remaining = remaining
        self._routing = routing
        self._sessions = sessions
        self._ends = list(ends)
        # Nothing is taken back, so nothing is kept either: the LLM writes from the start.
        self._always = not routing.rule.reads_along
        self._streaming = np.full(len(sessions), self._always)

    def streaming(self, rows: IntArray) -> BoolArray:
        """Rows whose next token the LLM is writing, or about to be asked for."""
        return self._streaming[rows]

    def kept(self, rows: IntArray, drafts: IntArray, sure: BoolArray, look: Look) -> BoolArray:
        """Which sure drafts the device keeps, bool [n].

        Parameters
        ----------
        rows : numpy.ndarray
            int64 [n], texts.
        drafts, sure : numpy.ndarray
            int64 and bool [n]; their next drafts.
        look : callable
            Makes further drafts.
        """
        rule, streaming = self._routing.rule, self._streaming[rows]
        ahead, going = sure.astype(np.int64), sure & streaming
        for depth in range(1, rule.ahead):
            ended = going & (np.isin(drafts, self._ends) | (depth >= self.remaining))
            ahead[ended] = rule.ahead
            going &= ~ended
            if not going.any():
                break
            drafts, sure_next = look(depth, drafts, going)
            going &= sure_next
            ahead += going
        taken = rule.take_back(ahead, np.full(len(rows), self.remaining))
        return np.asarray(sure & (~streaming | taken))

    def stop(self, rows: IntArray) -> None:
        """Take texts back, int64 [n]."""
        self._routing.streams.stop(self._sessions[rows])

    def note(self, rows: IntArray, ways: NDArray[np.int8], decided: Resolution[Any]) -> None:
        """See how a step ended: the LLM goes on with the rows that it has decided."""
        by_llm = np.isin(decided.stages, (Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED))
        self._streaming[rows] = self._always | (by_llm & (ways == Way.ESCALATED))
        self.stop(rows[~self._streaming[rows]])
        self.remaining -= 1


class Listener:
    """Texts of which there are no drafts: the LLM writes every token.

    A step is no more than its tokens: whatever can wait is done for all of them at the end, as the
    server may share this processor and waits for whoever reads along.

    Parameters
    ----------
    streams : Streams
        Of the router.
    config : RouterConfig
        Of the device.
    texts, records : TextBatch, TokenRecords
        Of a batch.
    traffic : Traffic
        Counters, added to.
    """

    def __init__(
        self,
        streams: Streams,
        config: RouterConfig,
        texts: TextBatch,
        records: TokenRecords,
        traffic: Traffic,
    ) -> None:
        self._streams = streams
        self._config = config
        self._texts = texts
        self._records = records
        self._traffic = traffic
        self._heard: list[tuple[int, IntArray, IntArray]] = []

    def next(self, rows: IntArray, index: int, left: int) -> IntArray:
        """The next tokens of texts (int64 [n]) in step `index`; `NO_TOKEN` where nobody answers.

        Each text lacks `left` tokens, these included.
        """
        tokens = self._streams.listen(self._texts, rows)
        if tokens.min() == NO_TOKEN:
            silent = np.flatnonzero(tokens == NO_TOKEN)
            asked = _without_drafts(self._config, self._texts, rows[silent], index, left)
            decided = self._streams.resolve(asked)
            self._traffic.include(decided.traffic)
            tokens[silent] = decided.tokens
        self._heard.append((index, rows, tokens))
        return tokens

    def settle(self) -> None:
        """Write down what was heard since, and what crossed the link for it."""
        if not self._heard:
            return
        self._traffic.include(self._streams.collect())
        steps = np.repeat(
            [index for index, _, _ in self._heard], [len(rows) for _, rows, _ in self._heard]
        )
        rows = np.concatenate([rows for _, rows, _ in self._heard])
        tokens = np.concatenate([tokens for _, _, tokens in self._heard])
        self._heard.clear()
        there = tokens != NO_TOKEN
        places, records = (rows[there], steps[there]), self._records
        records.present[places] = records.escalated[places] = True
        records.position[places] = self._texts.prompt_lengths[places[0]] + places[1]
        records.token[places] = tokens[there]
        # There was no draft that it could have accepted.
        records.stage[places] = Stage.LLM_RESAMPLED
        records.choice[places] = 1


def _without_drafts(
    config: RouterConfig, texts: TextBatch, rows: IntArray, index: int, left: int
) -> Escalation:
    """The question what comes next in texts (int64 [n]), as `Listener` asks it."""
    count, positions = len(rows), texts.lengths[rows]
    nothing = np.full(count, NO_TOKEN)
    return Escalation(
        texts=texts,
        rows=rows,
        steps=np.full(count, index, np.int64),
        positions=positions,
        draft=Draft(nothing, np.ones(count), None, Claim(nothing)),
        keys=draw_keys(config, texts.sessions[rows], positions),
        hidden=None,
        uncertainty=np.full(count, np.nan),
        audited=np.ones(count, np.bool_),
        spans=np.full(count, left),
    )
