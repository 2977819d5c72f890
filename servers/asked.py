"""One row of a request on its way through the engine, and what the engine is fed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hlm.randomness import DrawKeys
from hlm.wire import NO_TOKEN, Request, Row, RowReply, Status
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


def asked_row(request: Request, index: int) -> AskedRow:
    """One row of a request, with the places that feedback is wanted about."""
    row = request.rows[index]
    end = row.start + len(row.tokens)
    count = request.feedback_count(index) - int(row.draft != NO_TOKEN)
    count = max(count, 0) if request.feedback else 0
    feedback = np.arange(end - count, end, dtype=np.int64)
    return AskedRow(request, row, (request.client, row.session), end, feedback)


def feed_of(session: SessionKey, items: list[AskedRow]) -> Feed:
    """All rows of one text as one feed: later rows go on, or start over, from earlier ones."""
    start = items[0].row.start
    tokens: IntArray = items[0].row.tokens
    if len(items) == 1:
        only = items[0]
        places = np.append(only.feedback, only.end) if only.asks else only.feedback
        return Feed(session, start, tokens, places)
    for item in items[1:]:
        tokens = np.concatenate([tokens[: item.row.start - start], item.row.tokens])
    wanted = [item.feedback for item in items]
    wanted += [np.array([item.end]) for item in items if item.asks]
    return Feed(session, start, tokens, np.unique(np.concatenate(wanted)).astype(np.int64))


def draw_keys(request: Request, items: Sequence[AskedRow], positions: IntArray) -> DrawKeys:
    """Keys of the draws at `positions` of the rows' texts."""
    sessions = np.array(
        [(request.client << 32) | item.row.session for item in items], dtype=np.uint64
    )
    return DrawKeys(request.seed, sessions, positions)
