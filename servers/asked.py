"""One row of a request on its way through the engine, and what is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from hlm.arrays import IntArray
from hlm.wire import NO_TOKEN, Request, Row, RowReply, Status, WireError
from servers.texts import SessionKey, TextName


@dataclass
class AskedRow:
    """One row of one request on its way through the engine."""

    request: Request
    row: Row
    text: TextName
    end: int  # position after the row's tokens: that of the draft
    count: int  # fed tokens, the last ones, that the device wants to hear about
    decided: dict[str, Any] = field(default_factory=dict)  # fields of the reply
    reply: RowReply | None = None
    session: SessionKey | None = None  # the engine's, once the text is known to be held

    @property
    def drafted(self) -> bool:
        """Whether the row brings a draft to decide."""
        return self.row.draft != NO_TOKEN

    @property
    def asks(self) -> bool:
        """Whether the logits at `end` are needed; a row ending a block asks for one more."""
        return self.drafted or self.row.block

    @property
    def feedback(self) -> IntArray:
        """Positions of the fed tokens that the device wants to hear about."""
        return np.arange(self.end - self.count, self.end, dtype=np.int64)

    @property
    def told(self) -> int:
        """Bytes of feedback the reply has, if the request wants any."""
        return self.count + int(self.drafted)

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
        For a draft with nothing before it, and rows of one text that do not go on from each other:
        one forward pass reads them all.
    """
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


def asked_row(request: Request, index: int) -> AskedRow:
    """One row of a request, with the places that feedback is wanted about."""
    row = request.rows[index]
    end = row.start + len(row.tokens)
    count = request.feedback_count(index) - int(row.draft != NO_TOKEN)
    count = max(count, 0) if request.feedback else 0
    return AskedRow(request, row, (request.client, row.session), end, count)
