"""Reading along while the LLM writes: one stream of a device, token by token.

Verdicts come first, then the next token of each row when it is wanted. The server is allowed to run
a window ahead; whatever it wrote past the place where a row was taken back is its opinion on what
the device writes there itself.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from clients.records import Traffic
from clients.resolvers.link import Link
from hlm.arrays import IntArray
from hlm.transport import LinkDown
from hlm.wire import NO_TOKEN, Reply, Request, WireError
from hlm.wire.frames import End, Frame, FrameReader
from hlm.wire.stream import ANSWER_BYTES, KEY_BITS, Control, Opening, encode_control, encode_opening

MOST_LEFT = 8
"""Streams that may be left unread at a time; of more the first is read to its end."""


class SpanStream:
    """One stream, from its opening on.

    Parameters
    ----------
    link : Link
        Carries it.
    request : Request
        As `hlm.wire.stream.Opening` wants it.
    span : int
        Most tokens of a row after its verdict, >= 1.
    window : int
        Tokens that the server may be ahead of those taken, >= 1.
    traffic : Traffic
        Counts the bytes of all frames and controls, and the waiting.

    Raises
    ------
    LinkDown
        When no verdicts come.
    WireError
        When the server finds the opening invalid.

    Attributes
    ----------
    reply : Reply
        The verdicts.
    taken : numpy.ndarray
        int64 [rows], tokens after the verdict that `next` gave out.
    received : int
        Tokens after verdicts that have arrived, taken or not.
    ends : dict
        Why rows ended, once their ends have arrived.
    lost : frozenset of int
        Rows that were still being written when the stream broke: what they have stands, and the
        rest needs a new opening.
    """

    def __init__(
        self, link: Link, request: Request, span: int, window: int, traffic: Traffic
    ) -> None:
        self.window = window
        self.received = 0
        self.taken = np.zeros(len(request.rows), np.int64)
        self.ends: dict[int, End] = {}
        self.lost: frozenset[int] = frozenset()
        self._link = link
        self._traffic = traffic
        self._key = secrets.randbits(KEY_BITS)
        self._span = span
        self._credit = min(window, span)
        self._stopped: set[int] = set()
        self._waiting: list[deque[int]] = [deque() for _ in range(len(request.rows))]
        self._reader = FrameReader(request)
        opening = Opening(request, self._key, span, self._credit)
        self._arriving = link.stream(encode_opening(opening), traffic)
        while self._reader.reply is None:
            self._read()
        self.reply: Reply = self._reader.reply

    @property
    def over(self) -> bool:
        """Whether everything has arrived that will."""
        return bool(self.lost) or self._reader.finished

    @property
    def running(self) -> list[int]:
        """Rows that were neither stopped nor taken to their end."""
        return [row for row in range(len(self.taken)) if self._more(row)]

    def next(self, rows: Sequence[int]) -> IntArray:
        """Take the next token of each row, waiting for those that have not arrived.

        Parameters
        ----------
        rows : sequence of int
            Places in the request; none that was stopped.

        Returns
        -------
        numpy.ndarray
            int64 [n]; `NO_TOKEN` where the row has ended (`ends`) or was lost (`lost`).
        """
        for row in rows:
            while not self._waiting[row] and row in self._reader.running and not self.lost:
                self._read()
        tokens = [self._waiting[row].popleft() if self._waiting[row] else NO_TOKEN for row in rows]
        found = np.array(tokens, np.int64)
        self.taken[np.array(rows, np.int64)[found != NO_TOKEN]] += 1
        furthest = int(self.taken.max())
        low = self._credit < self._span and 2 * (self._credit - furthest) <= self.window
        if low and self.running:
            self._say(furthest, [])
        return found

    def stop(self, rows: Sequence[int]) -> None:
        """Take rows back: the text has of them what was taken."""
        # Whether their ends have arrived already is chance, and must not decide what is sent.
        stopped = [row for row in rows if self._more(row)]
        self._stopped |= set(rows)
        if stopped:
            self._say(0, stopped)

    def finish(self) -> None:
        """Take back what runs, and read what the server had written until it heard of it.

        So every byte is counted, and the connection can carry something else.
        """
        self.stop(self.running)
        while not self.over:
            self._read()
        self._traffic.decoded += self.received
        self._traffic.overshot += self.received - int(self.taken.sum())

    def _more(self, row: int) -> bool:
        if row in self._stopped:
            return False
        return bool(self._waiting[row]) or (row in self._reader.running and not self.lost)

    def _say(self, furthest: int, stopped: Sequence[int]) -> None:
        if self.lost:
            return
        self._credit = max(self._credit, min(furthest + self.window, self._span))
        control = Control(self._key, self._credit, {row: int(self.taken[row]) for row in stopped})
        self._link.post(encode_control(control), ANSWER_BYTES, self._traffic)

    def _read(self) -> None:
        """Take in the next piece; where there is none, the stream is broken."""
        try:
            pieces = next(self._arriving, b"")
        except LinkDown:
            if self._reader.reply is None:
                raise
            self.lost = frozenset(self._reader.running)
            return
        try:
            if not pieces:
                raise WireError("it ends before its rows do")
            for frame in self._reader.feed(pieces):
                self._take_in(frame)
            if self._reader.finished:
                # What is left is the end itself, after which the connection is free.
                with suppress(LinkDown):
                    if next(self._arriving, b""):
                        raise WireError("it goes on after its rows have ended")
        except WireError as error:
            self._broken(error)

    def _take_in(self, frame: Frame) -> None:
        for row, part in frame.tokens.items():
            written = int(self.taken[row]) + len(self._waiting[row]) + len(part)
            if written > self._credit:
                raise WireError(f"{written} tokens of row {row}; allowed: {self._credit}")
            self._waiting[row].extend(part.tolist())
            self.received += len(part)
        self.ends |= frame.ends

    def _broken(self, error: WireError) -> None:
        self._arriving.close()
        down = LinkDown(f"the LLM server's stream cannot be read: {error}")
        self._link.failed(down, self._traffic)
        if self._reader.reply is None:
            raise down from error
        self.lost = frozenset(self._reader.running)


class Spans:
    """The streams of a device over one link.

    Parameters
    ----------
    link : Link
        To the LLM server.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._traffic = Traffic()
        self._left: deque[SpanStream] = deque()

    def open(self, request: Request, span: int, window: int) -> SpanStream:
        """Open a stream (see `SpanStream`)."""
        return SpanStream(self.link, request, span, window, self._traffic)

    def leave(self, stream: SpanStream) -> None:
        """Take back what runs of a stream; nobody waits for the server to hear of it."""
        stream.stop(stream.running)
        self._left.append(stream)
        if len(self._left) > MOST_LEFT:
            self._finish_first()

    def finish(self) -> None:
        """Read all streams that were left to their ends."""
        while self._left:
            self._finish_first()

    def _finish_first(self) -> None:
        stream = self._left.popleft()
        known = stream.over
        stream.finish()
        if stream.lost and not known:
            # The server did answer until now: it may be asked at once.
            self.link.back_off.wake()

    def collect(self) -> Traffic:
        """What crossed the link since this was asked last."""
        found = replace(self._traffic)
        vars(self._traffic).update(vars(Traffic()))
        return found
