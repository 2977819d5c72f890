"""The way to the LLM where it goes on writing after a verdict (`docs/spans.md`)."""

from __future__ import annotations

from functools import partial

import numpy as np

from clients.records import Stage, TextBatch, Traffic
from clients.resolvers.chain import Escalation, Resolution
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.stream import Spans, SpanStream
from clients.resolvers.uplink import LanguageModelUplink
from hlm.arrays import IntArray
from hlm.transport import Transport
from hlm.verification import Verifier
from hlm.wire import NO_TOKEN, Reply, Request


class SpanUplink(LanguageModelUplink):
    """Resolver whose verdicts open streams; rows of open ones are decided from there.

    A row whose stream has ended too early, or broken, is asked about like any other: with a new
    opening, or unresolved while the link is down.

    Parameters
    ----------
    transport, verifier, config : as for `LanguageModelUplink`
        Of a verifier that decides by the LLM's own token.
    window : int
        Tokens that the server may be ahead of those taken, >= 1. Texts do not depend on it.
    """

    def __init__(
        self, transport: Transport, verifier: Verifier, config: UplinkConfig, window: int
    ) -> None:
        super().__init__(transport, verifier, config)
        self.window = window
        self._spans = Spans(self.link)
        self._open: dict[int, tuple[SpanStream, int]] = {}  # by session: stream, row of it

    def resolve(self, escalation: Escalation) -> Resolution[None]:
        """Take the next token of what is being written, and have the other rows verified."""
        resolution: Resolution[None] = Resolution.none(len(escalation.rows))
        self._read_on(escalation, resolution)
        asked = resolution.tokens < 0
        for span in np.unique(escalation.spans[asked]).tolist():
            rows = asked & (escalation.spans == span)
            carry = partial(self._opened, span=span) if span else None
            resolution.include(rows, self._verified(escalation.select(rows), carry))
        # A row without a draft gets no verdict: its stream begins with its token.
        self._read_on(escalation, resolution)
        resolution.traffic.include(self._spans.collect())
        return resolution

    def stop(self, sessions: IntArray) -> None:
        """Take texts back (int64 [n]); those that are not being written are left alone."""
        stopped: dict[SpanStream, list[int]] = {}
        for session in sessions.tolist():
            if session in self._open:
                stream, row = self._open.pop(session)
                stopped.setdefault(stream, []).append(row)
        for stream, rows in stopped.items():
            stream.stop(rows)
            self._left(stream)

    def finish(self) -> Traffic:
        """Take all texts back, and read what was written of them to the end."""
        self.stop(np.array(list(self._open), np.int64))
        self._spans.finish()
        return self._spans.collect()

    def listen(self, texts: TextBatch, rows: IntArray) -> IntArray:
        """Take the next tokens of texts (int64 [n]); `NO_TOKEN` of those that nobody writes.

        What crosses the link for them is told by the next `resolve`, `collect` or `finish`.
        """
        tokens = self._next(texts.sessions[rows])
        there = rows if tokens.min() != NO_TOKEN else rows[tokens != NO_TOKEN]
        self.sender.held(texts)[there] = texts.lengths[there] + 1
        return tokens

    def collect(self) -> Traffic:
        """What crossed the link for streams since this was asked last."""
        return self._spans.collect()

    def _next(self, sessions: IntArray) -> IntArray:
        """Take the next tokens of texts (int64 [n]); streams that have ended are left."""
        found = np.full(len(sessions), NO_TOKEN, np.int64)
        wanted: dict[SpanStream, list[tuple[int, int, int]]] = {}
        for place, session in enumerate(sessions.tolist()):
            if session in self._open:
                stream, row = self._open[session]
                wanted.setdefault(stream, []).append((place, session, row))
        for stream, places in wanted.items():
            tokens = stream.next([row for _, _, row in places])
            found[[place for place, _, _ in places]] = tokens
            if tokens.min() == NO_TOKEN:
                for session in [s for (_, s, _), t in zip(places, tokens, strict=True) if t < 0]:
                    del self._open[session]
                self._left(stream)
            if stream.lost:
                # The server did answer until now: it may be asked once more at once.
                self.link.back_off.wake()
        return found

    def _read_on(self, escalation: Escalation, resolution: Resolution[None]) -> None:
        """Write into `resolution` the next tokens of open streams."""
        if not self._open:
            return
        open_rows = np.flatnonzero(resolution.tokens < 0)
        tokens = self._next(escalation.texts.sessions[escalation.rows[open_rows]])
        index, tokens = open_rows[tokens != NO_TOKEN], tokens[tokens != NO_TOKEN]
        accepted = tokens == np.asarray(escalation.draft.tokens)[index]
        resolution.tokens[index] = tokens
        resolution.stages[index] = np.where(accepted, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)
        resolution.is_llm_choice[index] = True
        held = self.sender.held(escalation.texts)
        held[escalation.rows[index]] = escalation.positions[index] + 1

    def _opened(self, request: Request, traffic: Traffic, span: int) -> Reply:
        """Send a request as an opening."""
        stream = self._spans.open(request, span, self.window)
        traffic.streams += 1
        for row in stream.running:
            self._open[int(request.rows.sessions[row])] = stream, row
        self._left(stream)
        return stream.reply

    def _left(self, stream: SpanStream) -> None:
        """Have the rest of a stream read later, once none of its rows is wanted any more."""
        if not any(stream is other for other, _ in self._open.values()):
            self._spans.leave(stream)
