"""One request on its way through the engine: read in slices, each reduced before the next one.

A slice is as many tokens as one forward pass may feed and as many positions as its logits may be
held for. Between slices the engine is free for others, whatever the length of a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from hlm.arrays import IntArray
from hlm.verifiers import Need
from hlm.wire import NO_TOKEN, Reply, Request, RowReply, Status
from servers.asked import AskedRow, asked_row
from servers.backend import Backend, Feed
from servers.blocks import skipped
from servers.texts import SessionKey, TextName
from servers.verdicts import Places, reduce_logits

if TYPE_CHECKING:
    from servers.llm import LanguageModelService


class Reading:
    """One text of a request, whose rows are read together: each goes on from the one before it.

    Parameters
    ----------
    items : sequence of AskedRow
        Those that are served, in order.
    places : Places
        What is wanted of them.
    """

    def __init__(self, items: Sequence[AskedRow], places: Places) -> None:
        self.items = items
        self.session = items[0].session
        self.start = items[0].row.start
        self.end = items[-1].end
        self.places = places
        self.left: IntArray = np.unique(places.at)
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
        new = np.empty(0, np.int64)
        if not self._begun:
            new = np.concatenate([item.row.tokens for item in self.items])
        self._begun = True
        if not len(self.left):
            return Feed(self.session, start, new, self.left), 0
        # The logits of a position come out of feeding the token before it.
        first = min(engine.computed(self.session), start, int(self.left[0]) - 1)
        upto = min(int(self.left[-1]), first + tokens)
        wanted = self.left[self.left <= upto][:rows]
        self.left = self.left[len(wanted) :]
        if not len(wanted):
            # Nothing is wanted in this slice, but the engine reads only up to what is wanted.
            wanted = np.array([upto])
        feed = Feed(self.session, start, new, wanted)
        if engine.offers < Need.PROBS:
            ends = np.searchsorted(self.places.at, [wanted[0], wanted[-1] + 1])
            here = self.places.select(slice(*ends))
            asked = np.stack([here.at, here.token], 1)[here.token != NO_TOKEN]
            feed = replace(feed, asked=asked)
        return feed, int(wanted[-1]) - first


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
    ) -> None:
        self.request = request
        self.abandoned = abandoned
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self._service = service
        self._rows = [asked_row(request, i) for i in range(len(request.rows))]
        self._numbers = {id(item): index for index, item in enumerate(self._rows)}
        told = [item.told for item in self._rows] if request.feedback else [0] * len(self._rows)
        self._told = np.concatenate([[0], np.cumsum(told)])
        self._opinions = np.zeros(int(self._told[-1]), np.uint8)
        texts: dict[TextName, list[AskedRow]] = {}
        for item in self._rows:
            texts.setdefault(item.text, []).append(item)
        self.names = frozenset(texts)
        self._waiting = deque(texts.values())
        self._known = False
        self._reading: Reading | None = None
        self._planned: list[tuple[Reading, Feed]] = []

    @property
    def caller(self) -> int:
        """Who takes turns with others."""
        return self.request.client

    @property
    def sessions(self) -> list[SessionKey | None]:
        """The engine's session of each row, once it had a turn; None where no text is held."""
        return [item.session for item in self._rows]

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
        for items in self._waiting:
            # What the engine holds unread, as a decided token, is read as well.
            first = min(computed(items[0].session), items[0].row.start)
            tokens += max(item.end for item in items) - first + 1
            rows += sum(item.count + 1 for item in items)
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
                served = self._service.admit(self._waiting.popleft())
                if not served:
                    continue
                self._reading = Reading(served, Places.joined(list(map(self._places, served))))
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

    def take(self, found: Sequence[torch.Tensor | None]) -> None:
        """Take in what the planned slice found (logits a feed); the last one makes the reply."""
        places, logits = [], []
        for (reading, feed), result in zip(self._planned, found, strict=True):
            if result is None:
                self._lost(reading)
                continue
            if not feed.start and reading.session is not None:
                self._service.texts.begin(reading.session)
            if len(feed.wanted):
                ends = np.searchsorted(reading.places.at, [feed.wanted[0], feed.wanted[-1] + 1])
                here = reading.places.select(slice(*ends))
                index = torch.from_numpy(np.searchsorted(feed.wanted, here.at)).to(result.device)
                places.append(here)
                logits.append(result if len(here.at) == len(result) else result[index])
        self._planned = []
        if places:
            every = logits[0] if len(logits) == 1 else torch.cat(logits)
            reduce_logits(self.request, self._rows, self._opinions, Places.joined(places), every)
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
        owner, begun = texts.owner(self.request), set[SessionKey]()
        for items in self._waiting:
            first = items[0]
            if not first.row.start:
                session = (*first.text, self.request.identity)
            elif owner is not None:
                session = (*first.text, owner)
            else:
                continue
            for item in items:
                item.session = session
            begun.add(session)
        self._service.streams.end_texts(self.caller, begun)

    def _places(self, item: AskedRow) -> Places:
        """What is wanted of one row: opinions of tokens it feeds, then what it asks."""
        number = self._numbers[id(item)]
        at = item.feedback
        token = item.row.tokens[at - item.row.start]
        if item.asks:
            at = np.append(at, item.end)
            token = np.append(token, item.row.draft)
        told = self._told[number] + np.arange(len(at))
        if not self.request.feedback:
            token = np.full(len(at), NO_TOKEN)
        asks = np.zeros(len(at), np.bool_)
        asks[item.count :] = True
        return Places(at, np.full(len(at), number), token, told, asks)

    def _lost(self, reading: Reading) -> None:
        """The engine gave the text's place to another: what is not answered must be asked again."""
        for item in reading.items:
            item.reply = RowReply(Status.PREFIX_NEEDED)
        if self._reading is reading:
            self._reading = None

    def _finish(self) -> None:
        """Write the rows' replies; what was decided belongs to the texts now."""
        rows, engine = self._rows, self._service.engine
        ended = skipped([item.row for item in rows], [item.stands for item in rows])
        for item, silent in zip(rows, ended, strict=True):
            if silent:
                item.reply = RowReply(Status.SKIPPED)
        for number, (item, cut) in enumerate(zip(rows, [*ended[1:], False], strict=True)):
            if cut and (item.reply is None or item.reply.status != Status.SKIPPED):
                self._drop_after(item)
            if item.reply is not None:
                continue
            token = item.decided.get("token", NO_TOKEN)
            if token != NO_TOKEN and engine.held(item.session) == item.end:
                engine.append(item.session, token)
            feedback = None
            if self.request.feedback:
                feedback = self._opinions[self._told[number] : self._told[number + 1]]
            item.reply = RowReply(Status.OK, feedback=feedback, **item.decided)
        replies = tuple(item.reply or RowReply(Status.REFUSED) for item in rows)
        self.reply = Reply(replies)

    def _drop_after(self, item: AskedRow) -> None:
        """Forget drafts that the engine read after the row that ended its block."""
        engine = self._service.engine
        if engine.held(item.session) > item.end:
            nothing = np.empty(0, np.int64)
            engine.score([Feed(item.session, item.end, nothing, nothing)])
