"""One request on its way through the engine: read in slices, each reduced before the next one.

A slice is as many tokens as one forward pass may feed and as many positions as its logits may be
held for. Between slices the engine is free for others, whatever the length of a message.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from hlm.arrays import IntArray
from hlm.verifiers import Need
from hlm.wire import NO_TOKEN, Reply, Request, Rows, Status
from servers.backend import Backend, Feed, Owner, Unreadable
from servers.origin import NOBODY, Caller, Origin
from servers.texts import SessionKey
from servers.verdicts import Verdicts

if TYPE_CHECKING:
    from servers.llm import LanguageModelService


logger = logging.getLogger(__name__)


class Reading:
    """One text of a request, whose rows are read together: each goes on from the one before it.

    Parameters
    ----------
    rows : Rows
        Of the request.
    begin, end : int
        Those of them that are served, ``begin .. end - 1``, all of one text.
    session : SessionKey or None
        The engine's.
    verdicts : Verdicts
        Which say what is wanted of them.
    owner : Owner
        Whose text it is.
    """

    def __init__(
        self,
        rows: Rows,
        begin: int,
        end: int,
        session: SessionKey | None,
        verdicts: Verdicts,
        owner: Owner,
    ) -> None:
        self.rows = slice(begin, end)
        self.session = session
        self.owner = owner
        self.start, self.end = int(rows.starts[begin]), int(rows.ends[end - 1])
        first = int(rows.lengths[:begin].sum())
        self.tokens = rows.tokens[first : first + self.end - self.start]
        places = slice(*verdicts.firsts[[begin, end]].tolist())
        self.first = places.start
        self._at, self._token = verdicts.at[places], verdicts.token[places]
        self.left: IntArray = self._at if len(self._at) == 1 else np.unique(self._at)
        self._begun = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to be read."""
        return self._begun and not len(self.left)

    def feed(self, engine: Backend, tokens: int, rows: int) -> tuple[Feed | None, int]:
        """What the engine is to be fed next, and how many tokens that reads.

        Parameters
        ----------
        engine : Backend
            Which is asked how far it has read.
        tokens, rows : int
            Most tokens to read and most positions to have logits at, >= 1.

        Returns
        -------
        Feed or None
            None when the engine no longer holds what this builds on.
        int
            Tokens that are read.
        """
        held = engine.held(self.session)
        start = self.end if self._begun else self.start
        if held < start:
            return None, 0
        new = self.tokens[:0] if self._begun else self.tokens
        self._begun = True
        if not len(self.left):
            return Feed(self.session, start, new, self.left, owner=self.owner), 0
        # The logits of a position come out of feeding the token before it.
        first = min(engine.computed(self.session), start, int(self.left[0]) - 1)
        upto = min(int(self.left[-1]), first + tokens)
        wanted = self.left[self.left <= upto][:rows]
        self.left = self.left[len(wanted) :]
        if not len(wanted):
            # Nothing is wanted in this slice, but the engine reads only up to what is wanted.
            wanted = np.array([upto])
        feed = Feed(self.session, start, new, wanted, owner=self.owner)
        if engine.offers < Need.PROBS:
            here = self._within(wanted)
            asked = np.stack([self._at[here], self._token[here]], 1)
            feed = replace(feed, asked=asked[asked[:, 1] != NO_TOKEN])
        return feed, int(wanted[-1]) - first

    def found(self, wanted: IntArray, logits: torch.Tensor) -> tuple[IntArray, torch.Tensor]:
        """Places of the request at which a slice found logits, and a row of these for each.

        Parameters
        ----------
        wanted : numpy.ndarray
            int64 [m], the positions that the slice had read.
        logits : torch.Tensor
            float32 [m, vocab].
        """
        if np.array_equal(wanted, self._at):
            return np.arange(self.first, self.first + len(wanted)), logits
        here = self._within(wanted)
        index = torch.from_numpy(np.searchsorted(wanted, self._at[here])).to(logits.device)
        return np.arange(self.first + here.start, self.first + here.stop), logits[index]

    def _within(self, wanted: IntArray) -> slice:
        """Which of the places lie among some positions that were read."""
        begin, end = np.searchsorted(self._at, [wanted[0], wanted[-1] + 1])
        return slice(int(begin), int(end))


class Job:
    """A request, from the moment it was read until its reply.

    Parameters
    ----------
    service : LanguageModelService
        Which admits its texts.
    request : Request
        Valid, for this service's model.
    abandoned : callable, optional
        Whether nobody waits for the reply any more.
    origin : Origin
        Who asks.

    Attributes
    ----------
    names : frozenset
        Its texts; another request for one of them must wait.
    reply : Reply or None
        Once it is answered.
    error : Exception or None
        Why it cannot be.
    """

    def __init__(
        self,
        service: LanguageModelService,
        request: Request,
        abandoned: Callable[[], bool] = lambda: False,
        origin: Origin = NOBODY,
    ) -> None:
        self.request = request
        self.abandoned = abandoned
        self.origin = origin
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self._service = service
        self._verdicts = Verdicts(request)
        self._sessions: dict[int, SessionKey] = {}
        begins = np.flatnonzero(request.rows.first)
        self._texts = list(pairwise([*begins.tolist(), len(request.rows)]))
        self.names = frozenset((request.client, n) for n in request.rows.sessions[begins].tolist())
        self._waiting = deque(self._texts)
        self._known = False
        self._reading: Reading | None = None
        self._planned: list[tuple[Reading, Feed]] = []

    @property
    def caller(self) -> Caller:
        """Who takes turns with others."""
        return self.origin.device, self.request.client

    @property
    def sessions(self) -> list[SessionKey | None]:
        """The engine's session of each text, once it had a turn; None where it is not held."""
        return [self._sessions.get(begin) for begin, _ in self._texts]

    @property
    def finished(self) -> bool:
        """Whether there is a reply, or none to come."""
        return self.reply is not None or self.error is not None

    def need(self, most: int) -> tuple[int, int]:
        """Tokens and positions left, at most so many, each from 1 to `most`."""
        self._know_texts()
        tokens, rows, computed = 1, 1, self._service.engine.computed
        if self._reading is not None:
            left = self._reading.left
            rows = len(left)
            tokens = max(1, int(left[-1]) - computed(self._reading.session))
        columns, fed = self.request.rows, self._verdicts.fed_counts
        for begin, end in self._waiting:
            # What the engine holds unread, as a decided token, is read as well.
            first = min(computed(self._sessions.get(begin)), int(columns.starts[begin]))
            tokens += int(columns.ends[end - 1]) - first + 1
            rows += int(fed[begin:end].sum()) + end - begin
            if tokens >= most and rows >= most:
                break
        return min(tokens, most), min(rows, most)

    def plan(self, tokens: int, rows: int) -> None:
        """Decide what the next slice reads, at most so many tokens and positions (>= 1)."""
        self._know_texts()
        engine = self._service.engine
        while tokens > 0 and rows > 0 and len(self._planned) < engine.max_sessions:
            if self._reading is None:
                if not self._waiting:
                    return
                begin, end = self._admit(*self._waiting.popleft())
                if begin == end:
                    continue
                session, columns = self._sessions[begin], self.request.rows
                self._reading = Reading(
                    columns, begin, end, session, self._verdicts, self.origin.shares
                )
            reading = self._reading
            feed, cost = reading.feed(engine, tokens, rows)
            if feed is None:
                self._lost(reading)
                continue
            self._planned.append((reading, feed))
            tokens, rows = tokens - cost, rows - len(feed.wanted)
            if not reading.done:
                return
            self._reading = None

    @property
    def feeds(self) -> list[Feed]:
        """What the slice that is planned feeds."""
        return [feed for _, feed in self._planned]

    def take(self, found: Sequence[torch.Tensor | Unreadable | None]) -> None:
        """Take in what the planned slice found (logits a feed); the last one makes the reply."""
        places, logits = [], []
        for (reading, feed), result in zip(self._planned, found, strict=True):
            if result is None:
                self._lost(reading)
                continue
            if isinstance(result, Unreadable):
                logger.info("tokens of client %d are not decided: %s", self.request.client, result)
                self._give_up(reading, Status.REFUSED)
                continue
            if not feed.start and reading.session is not None:
                self._service.texts.begin(reading.session)
            if len(feed.wanted):
                here, rows = reading.found(feed.wanted, result)
                if len(here):
                    places.append(here)
                    logits.append(rows)
        self._planned = []
        if len(places) == 1:
            self._verdicts.take(places[0], logits[0])
        elif places:
            self._verdicts.take(np.concatenate(places), torch.cat(logits))
        if self._reading is None and not self._waiting:
            self._finish()

    def _know_texts(self) -> None:
        """Find the engine's sessions of the texts, at the first turn: none of a text not held.

        No other request about them gets a turn before this one is answered, so they stay what they
        are, unless the engine gives their place away.
        """
        if self._known:
            return
        self._known, texts = True, self._service.texts
        device = self.origin.device
        owner, new = texts.owner(self.request, device), self.request.identity + device.encode()
        rows, client = self.request.rows, self.request.client
        for begin, _ in self._texts:
            whose = owner if rows.starts[begin] else new
            if whose is not None:
                self._sessions[begin] = client, int(rows.sessions[begin]), whose
        self._service.streams.end_texts(self.caller, set(self._sessions.values()))

    def _admit(self, begin: int, end: int) -> tuple[int, int]:
        """Which of these rows of one text are served: its prefix is held, and it is short enough.

        The others follow them.
        """
        statuses, ends = self._verdicts.statuses, self.request.rows.ends
        if begin not in self._sessions:
            statuses[begin:end] = Status.PREFIX_NEEDED
            return begin, begin
        most = self._service.engine.max_context
        short = begin + int(np.searchsorted(ends[begin:end], most, "right"))
        statuses[short:end] = Status.REFUSED
        return begin, short

    def _lost(self, reading: Reading) -> None:
        """The engine gave the text's place to another: what is not answered must be asked again."""
        self._give_up(reading, Status.PREFIX_NEEDED)

    def _give_up(self, reading: Reading, status: Status) -> None:
        self._verdicts.statuses[reading.rows] = status
        if self._reading is reading:
            self._reading = None

    def _finish(self) -> None:
        """Write the rows' replies; what was decided belongs to the texts now."""
        engine, ends = self._service.engine, self.request.rows.ends.tolist()
        tokens, cut = (column.tolist() for column in self._verdicts.settle())
        for begin, end in self._texts:
            session = self._sessions.get(begin)
            for row in range(begin, end):
                if cut[row] and engine.held(session) > ends[row]:
                    # Drafts that the engine read after the row that ended its block.
                    nothing = np.empty(0, np.int64)
                    engine.score([Feed(session, ends[row], nothing, nothing)])
                if tokens[row] != NO_TOKEN and engine.held(session) == ends[row]:
                    engine.append(session, tokens[row])
        self.reply = self._verdicts.reply()
        self._service.verdicts += int((self.reply.served & self.request.rows.drafted).sum())
