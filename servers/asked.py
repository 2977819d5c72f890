"""One row of a request on its way through the engine, and what the engine is fed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.randomness import DrawKeys
from hlm.wire import NO_TOKEN, Request, Row, RowReply, Status, WireError
from servers.engine import Feed

IntArray = NDArray[np.int64]
SessionKey = tuple[int, int]
"""Client and number of its text."""


@dataclass
class AskedRow:
    """One row of one request on its way through the engine."""

    request: Request
    row: Row
    session: SessionKey
    end: int  # position after the row's tokens: that of the draft
    feedback: IntArray  # positions of fed tokens whose law the device wants to hear about
    logits: list[torch.Tensor] = field(default_factory=list)  # at `feedback`, then at `end`
    decided: dict[str, Any] = field(default_factory=dict)  # fields of the reply
    reply: RowReply | None = None

    @property
    def drafted(self) -> bool:
        """Whether the row brings a draft to decide."""
        return self.row.draft != NO_TOKEN

    @property
    def asks(self) -> bool:
        """Whether the law at `end` is needed; a row that ends a block asks for one more token."""
        return self.drafted or self.row.block

    @property
    def stands(self) -> bool:
        """Whether a row that goes on from this one's draft has something to go on from."""
        served = self.reply is None or self.reply.status == Status.OK
        return served and bool(self.decided.get("accepted"))


def check_askable(request: Request) -> None:
    """Refuse a request that reads well and cannot be served.

    Raises
    ------
    WireError
        For a client from 2**32, a draft with nothing before it, and rows of one text that do not
        go on from each other: one forward pass reads them all.
    """
    if not 0 <= request.client < 1 << 32:
        raise WireError(f"client={request.client} must be in [0, {1 << 32})")
    for row in request.rows:
        if row.draft != NO_TOKEN and not row.start and not len(row.tokens):
            raise WireError(f"session {row.session}: a draft needs at least one token before it")
    for last, row in pairwise(request.rows):
        if row.block or row.session != last.session:
            continue
        end = last.start + len(last.tokens)
        if last.block or row.start != end:
            raise WireError(
                f"session {row.session}: start={row.start} must be {end}, where the row before it "
                "ends, and that one in no block"
            )


def turns(asked: Sequence[Sequence[AskedRow]]) -> list[list[int]]:
    """Which requests are read together: those that share a text take turns, in their order."""
    last: dict[SessionKey, int] = {}
    found: list[list[int]] = []
    for index, items in enumerate(asked):
        texts = {item.session for item in items}
        turn = 1 + max((last.get(text, -1) for text in texts), default=-1)
        last.update(dict.fromkeys(texts, turn))
        if turn == len(found):
            found.append([])
        found[turn].append(index)
    return found


def asked_row(request: Request, index: int) -> AskedRow:
    """One row of a request, with the places that feedback is wanted about."""
    row = request.rows[index]
    end = row.start + len(row.tokens)
    count = request.feedback_count(index) - int(row.draft != NO_TOKEN)
    count = max(count, 0) if request.feedback else 0
    feedback = np.arange(end - count, end, dtype=np.int64)
    return AskedRow(request, row, (request.client, row.session), end, feedback)


def feed_of(session: SessionKey, items: list[AskedRow]) -> Feed:
    """All rows of one text as one feed: each goes on where the one before it ends."""
    start = items[0].row.start
    tokens: IntArray = items[0].row.tokens
    if len(items) == 1:
        only = items[0]
        places = np.append(only.feedback, only.end) if only.asks else only.feedback
        return Feed(session, start, tokens, places)
    tokens = np.concatenate([item.row.tokens for item in items])
    wanted = [item.feedback for item in items]
    wanted += [np.array([item.end]) for item in items if item.asks]
    return Feed(session, start, tokens, np.unique(np.concatenate(wanted)).astype(np.int64))


def draw_keys(request: Request, items: Sequence[AskedRow], positions: IntArray) -> DrawKeys:
    """Keys of the draws at `positions` of the rows' texts."""
    sessions = np.array(
        [(request.client << 32) | item.row.session for item in items], dtype=np.uint64
    )
    return DrawKeys(request.seed, sessions, positions)
