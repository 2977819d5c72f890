"""One stream on its way through the engine: verdicts, then a token a row and turn.

Streams take turns like requests (`servers.schedule`), so they share passes with them and join and
leave between any two. What a turn wrote is a frame.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from hlm.wire import NO_TOKEN, encode_reply
from hlm.wire.frames import End, Frame, encode_frame, framed
from hlm.wire.stream import Control, Opening
from servers.backend import Feed, Unreadable
from servers.job import Job
from servers.origin import NOBODY, Caller, Origin
from servers.texts import SessionKey, TextName

if TYPE_CHECKING:
    from servers.llm import LanguageModelService

CREDIT_SECONDS = 5.0
"""How long a stream whose credit is used up waits for more."""

_NOTHING = np.empty(0, np.int64)


@dataclass
class WrittenRow:
    """A row that is being written."""

    session: SessionKey
    base: int
    """Tokens of the text up to the verdict's."""
    written: int = 0
    logits: torch.Tensor | None = None
    """[1, vocab], what the turn found for the next token."""

    @property
    def end(self) -> int:
        """Tokens of the text now: the place of the next one."""
        return self.base + self.written


@dataclass
class _Wrote:
    """What no frame has told of yet."""

    tokens: dict[int, list[int]]
    ends: dict[int, End] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ends) or any(self.tokens.values())


class Stream:
    """An opening, from the moment it was read until its last row has ended.

    Parameters
    ----------
    service : LanguageModelService
        Which admits its texts.
    opening : Opening
        Valid, for this service's model.
    abandoned : callable
        Whether nobody reads the stream any more.
    steady : bool
        A control takes effect where the credit before it is used up, or where no row is left, so
        that which rows share a pass does not depend on when it comes.
    wanted : callable, optional
        Whether its reader waits for the next frame, and nothing is written before; by default it
        is written ahead, as far as the credit goes.
    origin : Origin
        Who asks.

    Attributes
    ----------
    rows : dict
        Those being written, by their place in the opening.
    error : Exception or None
        Why it broke.
    """

    def __init__(
        self,
        service: LanguageModelService,
        opening: Opening,
        abandoned: Callable[[], bool] = lambda: False,
        steady: bool = False,
        wanted: Callable[[], bool] | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        self.opening = opening
        self.origin = origin
        self.abandoned = abandoned
        self.rows: dict[int, WrittenRow] = {}
        self.error: Exception | None = None
        self._service = service
        self._steady = steady
        self._wanted = wanted
        self._job: Job | None = Job(service, opening.request, abandoned, origin)
        self._credit = opening.credit
        self._controls: deque[Control] = deque()
        self._frames = bytearray()
        self._unread = False  # of what was written
        self._wrote = _Wrote({})
        self._planned: list[tuple[int, Feed]] = []
        self._deadline = float("inf")

    @property
    def caller(self) -> Caller:
        """Who takes turns with others."""
        return self.origin.device, self.opening.request.client

    @property
    def names(self) -> frozenset[TextName]:
        """Texts about which other requests must wait."""
        if self._job is not None:
            return self._job.names
        if self._steady and self._writable():
            return frozenset(row.session[:2] for row in self.rows.values())
        return frozenset()

    @property
    def writing(self) -> bool:
        """Whether the verdicts are out."""
        return self._job is None

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do."""
        return self.error is not None or (self._job is None and not self.rows)

    @property
    def ready(self) -> bool:
        """Whether a turn would bring it on."""
        if self._job is not None or self._wanted is None:
            return self._job is not None or bool(self._writable())
        return self._wanted() and self.rides

    @property
    def rides(self) -> bool:
        """Whether it goes on where another one of its device, also written as read, does.

        Texts of a device grow together, so its reader is about to want it, too.
        """
        lazy = self._wanted is not None and self._job is None
        return lazy and not self._unread and bool(self._writable())

    @property
    def deadline(self) -> float:
        """When it stops waiting for credit, s of `time.monotonic`; infinity while it need not.

        A device that waits for a frame says nothing meanwhile.
        """
        if self._wanted is None or self._deadline == float("inf"):
            return self._deadline
        return 0.0 if self._wanted() and not self._frames else float("inf")

    def need(self, most: int) -> tuple[int, int]:
        """Tokens and positions that the next turn may use, each from 1 to `most`."""
        if self._job is not None:
            return self._job.need(most)
        computed, rows = self._service.engine.computed, self._writable()
        unread = (row.end - computed(row.session) for row in map(self.rows.__getitem__, rows))
        tokens = sum(max(1, count) for count in unread)
        return max(1, min(tokens, most)), max(1, min(len(rows), most))

    def plan(self, tokens: int, rows: int) -> None:
        """Decide what the next turn reads, at most so many tokens and positions (>= 1)."""
        if self._job is not None:
            self._job.plan(tokens, rows)
            return
        engine = self._service.engine
        for index in self._writable()[: min(rows, engine.max_sessions)]:
            row = self.rows[index]
            if engine.held(row.session) != row.end:
                self._end(index, End.LOST)
                continue
            # Tokens that were only taken in are read first, some a turn.
            upto = min(row.end, engine.computed(row.session) + tokens)
            tokens -= max(1, upto - engine.computed(row.session))
            follow = self.opening.span - row.written - 1
            feed = Feed(row.session, row.end, _NOTHING, np.array([upto]), follow=follow)
            self._planned.append((index, feed))
            if tokens <= 0:
                break

    @property
    def feeds(self) -> list[Feed]:
        """What the turn that is planned feeds."""
        return self._job.feeds if self._job is not None else [feed for _, feed in self._planned]

    def take(self, found: Sequence[torch.Tensor | Unreadable | None]) -> None:
        """Take in what the planned turn found (logits a feed)."""
        if self._job is not None:
            self._job.take(found)
            self._decided(self._job)
            return
        for (index, feed), logits in zip(self._planned, found, strict=True):
            row = self.rows[index]
            if logits is None or isinstance(logits, Unreadable):
                self._end(index, End.LOST)
                continue
            if int(feed.wanted[0]) == row.end:
                row.logits = logits
            # Others come first in the next turn, where not all fit into one.
            self.rows[index] = self.rows.pop(index)
        self._planned = []

    def open_rows(self) -> list[WrittenRow]:
        """Rows whose next token is to be drawn from what the turn found."""
        return [row for row in self.rows.values() if row.logits is not None]

    def append(self, tokens: Iterator[int]) -> None:
        """Write the next token of each of the `open_rows`, in their order."""
        engine = self._service.engine
        for index, row in list(self.rows.items()):
            if row.logits is None:
                continue
            row.logits, token = None, next(tokens)
            if engine.held(row.session) != row.end:
                # Another text of the same turn has its place.
                self._end(index, End.LOST)
                continue
            engine.append(row.session, token)
            self._service.streams.stats.tokens += 1
            row.written += 1
            self._unread = True
            self._wrote.tokens[index].append(token)
            if row.written >= self.opening.span:
                self._end(index, End.SPAN)
            elif row.end >= engine.max_context:
                self._end(index, End.CONTEXT)

    def settle(self) -> None:
        """After a turn: its frame, and what the device said meanwhile."""
        if self._job is not None:
            return
        self._emit()
        # Each has a frame of its own, whenever it came.
        while self._controls and (not self._writable() or self._all_stopped()):
            self._apply(self._controls.popleft())
            self._emit()
        if self._writable():
            self._deadline = float("inf")
        elif self.rows and self._deadline == float("inf"):
            self._deadline = time.monotonic() + CREDIT_SECONDS

    def _emit(self) -> None:
        if self._wrote:
            tokens = {row: np.array(part, np.int64) for row, part in self._wrote.tokens.items()}
            frame = Frame(tokens, self._wrote.ends)
            self._frames += encode_frame(frame, self.opening.request.vocab)
            self._wrote = _Wrote({index: [] for index in sorted(self.rows)})

    def frames(self) -> bytes:
        """The frames that nobody has had yet."""
        found, self._frames, self._unread = bytes(self._frames), bytearray(), False
        return found

    def control(self, control: Control) -> bool:
        """Do as the device says, now or where `steady` lets it; False if it cannot be."""
        for index, taken in control.stops.items():
            row = self.rows.get(index)
            if index >= len(self.opening.request.rows) or (row and taken > row.written):
                return False
        self._controls.append(control)
        if not self._steady:
            self._apply(self._controls.popleft())
        self.settle()
        return True

    def end_all(self, why: End) -> None:
        """Write no more."""
        for index in list(self.rows):
            self._end(index, why)
        self.settle()

    def end_texts(self, sessions: Collection[SessionKey]) -> None:
        """Write no more of texts about which there is a later request."""
        for index in [index for index, row in self.rows.items() if row.session in sessions]:
            self._end(index, End.STOPPED)
        self.settle()

    def _apply(self, control: Control) -> None:
        self._credit = max(self._credit, control.credit)
        for index, taken in control.stops.items():
            if index in self.rows:
                row = self.rows[index]
                self._end(index, End.STOPPED)
                self._service.texts.cut(row.session, row.base + taken)
                self._service.streams.stats.overshot += row.written - taken
        self._deadline = float("inf")

    def _all_stopped(self) -> bool:
        """Whether controls that are still to be applied leave no row."""
        return self.rows.keys() <= {row for control in self._controls for row in control.stops}

    def _writable(self) -> list[int]:
        return [index for index, row in self.rows.items() if row.written < self._credit]

    def _end(self, index: int, why: End) -> None:
        del self.rows[index]
        self._wrote.ends[index] = why

    def _decided(self, job: Job) -> None:
        """Once there are verdicts, go on from them."""
        if job.error is not None:
            self.error = job.error
        if job.reply is None:
            return
        self._job, request, streams = None, self.opening.request, self._service.streams
        self._frames += framed(encode_reply(job.reply, request))
        engine, room = self._service.engine, streams.room(self)
        bases = (request.rows.ends + (job.reply.tokens != NO_TOKEN)).tolist()
        # An opening has one row a text.
        for index, (base, session) in enumerate(zip(bases, job.sessions, strict=True)):
            if session is None or not job.reply.served[index]:
                continue
            self.rows[index] = WrittenRow(session, base)
            self._wrote.tokens[index] = []
            if base >= engine.max_context:
                self._end(index, End.CONTEXT)
            elif engine.held(session) != base:
                self._end(index, End.LOST)
            elif len(self.rows) > room:
                self._end(index, End.BUSY)
        streams.add(self)
