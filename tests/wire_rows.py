"""Rows of messages one by one, as tests write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hlm.wire import NO_TOKEN, Columns, Reply, Rows, Status


def _no_bytes():
    return np.zeros(0, np.uint8)


def _same(one: object, other: object) -> bool:
    if type(other) is not type(one):
        return NotImplemented
    return all(
        np.array_equal(mine, theirs)
        for mine, theirs in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a request; `weight` alone is a claim of shape WEIGHT."""

    session: int
    start: int
    tokens: np.ndarray
    draft: int = NO_TOKEN
    weight: int | None = None
    support: np.ndarray | None = None
    weights: np.ndarray | None = None
    quiet: int = 0
    block: bool = False

    __eq__ = _same
    __hash__ = None

    @property
    def claimed(self) -> np.ndarray:
        alone = [] if self.weight is None else [self.weight]
        return np.array(alone, np.int64) if self.weights is None else np.asarray(self.weights)


@dataclass(frozen=True, eq=False)
class RowReply:
    """A row of a reply."""

    status: Status = Status.OK
    accepted: bool = False
    token: int = NO_TOKEN
    feedback: np.ndarray = field(default_factory=_no_bytes)
    target_support: np.ndarray | None = None
    target_weights: np.ndarray | None = None

    __eq__ = _same
    __hash__ = None


def following_row(previous: Row, draft=NO_TOKEN, weight=None, support=None, weights=None) -> Row:
    """The next row of a block: `draft` comes after the draft of `previous`."""
    tokens = np.array([previous.draft], dtype=np.int64)
    start = previous.start + len(previous.tokens)
    return Row(previous.session, start, tokens, draft, weight, support, weights, 1, True)


def _joined(parts) -> np.ndarray:
    parts = [part for part in parts if part is not None and len(part)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def rows_of(rows: Sequence[Row]) -> Rows:
    """Rows as columns."""
    return Rows(
        np.array([row.session for row in rows]),
        np.array([row.start for row in rows]),
        np.array([np.size(row.tokens) for row in rows]),
        _joined(row.tokens for row in rows),
        np.array([row.draft for row in rows]),
        np.array([row.quiet for row in rows]),
        np.array([row.block for row in rows]),
        np.array([len(row.claimed) for row in rows]),
        _joined(row.claimed for row in rows),
        _joined(row.support for row in rows),
    )


def reply_of(rows: Sequence[RowReply]) -> Reply:
    """Rows of a reply as columns."""
    return Reply(
        np.array([row.status for row in rows]),
        np.array([row.accepted for row in rows]),
        np.array([row.token for row in rows]),
        np.array([np.size(row.feedback) for row in rows]),
        _joined(row.feedback for row in rows),
        np.array(
            [np.size(row.target_weights) if row.target_weights is not None else 0 for row in rows]
        ),
        _joined(row.target_support for row in rows),
        _joined(row.target_weights for row in rows),
    )


def _parts(columns: Columns, name: str, counts: str) -> list:
    values, ends = getattr(columns, name), np.cumsum(getattr(columns, counts))
    return np.split(values, ends[:-1]) if values.size else [None] * len(columns)


def listed(rows: Rows) -> list[Row]:
    """Rows one by one."""
    found = []
    tokens = np.split(rows.tokens, np.cumsum(rows.lengths)[:-1])
    weights, support = _parts(rows, "weights", "counts"), _parts(rows, "support", "counts")
    for i, claimed in enumerate(weights):
        claimed = None if claimed is None or not len(claimed) else claimed
        ids = None if claimed is None else support[i]
        alone = claimed is not None and ids is None and len(claimed) == 1
        found.append(
            Row(
                int(rows.sessions[i]),
                int(rows.starts[i]),
                tokens[i],
                int(rows.drafts[i]),
                int(claimed[0]) if alone else None,
                ids,
                None if alone else claimed,
                int(rows.quiet[i]),
                bool(rows.block[i]),
            )
        )
    return found


def told(reply: Reply) -> list[RowReply]:
    """Rows of a reply one by one."""
    feedback = np.split(reply.feedback, np.cumsum(reply.feedback_counts)[:-1])
    support = _parts(reply, "target_support", "target_counts")
    weights = _parts(reply, "target_weights", "target_counts")
    return [
        RowReply(
            Status(reply.statuses[i]),
            bool(reply.accepted[i]),
            int(reply.tokens[i]),
            feedback[i],
            support[i] if reply.target_counts[i] else None,
            weights[i] if reply.target_counts[i] else None,
        )
        for i in range(len(reply))
    ]
