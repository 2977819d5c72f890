"""Rows of a request, as columns, and what every draft of them comes with.

Words used here: a *session* is one text of one client; the *prefix* is its tokens so far; to
*feed* a token is to let the large model read it; a *draft* is a token proposed by the small model,
not part of the prefix yet. In a *block* each row drafts one token further on the assumption that
the drafts before it are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from hlm.arrays import BoolArray, IntArray
from hlm.verifiers import Shape
from hlm.wire.bits import extremes
from hlm.wire.columns import Columns, column
from hlm.wire.errors import InvalidField

NO_TOKEN = -1
"""Stands for "no draft" in :class:`Rows` and "no token" in a :class:`~hlm.wire.Reply`."""

SCALAR_BITS = 16
"""Probabilities that travel alone are integers in [1, 2**16], in units of 2**-16."""


@dataclass(frozen=True)
class Limits:
    """The largest message that a reader accepts; it allocates in proportion to these at most.

    Parameters
    ----------
    max_bytes
        Length of a message in bytes.
    max_rows
        Rows of a message, below 2**15.
    max_tokens_per_row
        Tokens of one row, and what ``start`` may be: the longest context.
    max_tokens
        Tokens of all rows together.
    max_vocab
        Size of the vocabulary.
    max_weights
        Weights of all rows together (for ``full``: rows times vocabulary).
    """

    max_bytes: int = 1 << 23
    max_rows: int = 4096
    max_tokens_per_row: int = 1 << 17
    max_tokens: int = 1 << 18
    max_vocab: int = 1 << 20
    max_weights: int = 1 << 22

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")
        if self.max_rows >= 1 << 15:
            raise ValueError(f"max_rows={self.max_rows} must be below {1 << 15}")


@dataclass(frozen=True, eq=False)
class Rows(Columns):
    """Escalated positions of texts, or tokens to feed without a question (a flush).

    Parameters
    ----------
    sessions
        The device's number for each row's text, in [0, 2**32).
    starts
        Tokens the device believes that the server holds for this session. With 0 the text begins:
        the server replaces whatever it holds.
    lengths, tokens
        How many tokens follow that the server does not have yet, and these tokens of all rows.
    drafts
        The token to verify after them, or :data:`NO_TOKEN`.
    quiet
        No feedback is wanted for the first ``quiet`` tokens: a prompt, or a prefix sent again.
    block
        bool: the row goes on the block of the row before it, which has the same session and a
        draft: its start is where that row ended, its token that draft, and quiet is 1. None of
        the three is sent.
    counts, weights, support
        What is claimed of the drafts: entries of each row, and these of all rows. Shape WEIGHT:
        the probability of the draft in units of 2**-16, in [1, 2**16]. SUPPORT: ids, strictly
        increasing in a row, and weights in units of ``2**-bits`` whose sum is at most ``2**bits``
        (what is left is spread over the other tokens). PROBS: vocab weights, summing to
        ``2**bits``. ``support`` is empty but for SUPPORT.

    Notes
    -----
    Rows of one session are adjacent and served in their order; one that is not part of a block
    brings tokens that stand, whatever became of the drafts before it.
    """

    sessions: IntArray = column()
    starts: IntArray = column()
    lengths: IntArray = column()
    tokens: IntArray = column(of="lengths")
    drafts: IntArray = column(fill=NO_TOKEN)
    quiet: IntArray = column()
    block: BoolArray = column(np.bool_)
    counts: IntArray = column()
    weights: IntArray = column(of="counts")
    support: IntArray = column(of="counts", optional=True)

    @cached_property
    def ends(self) -> IntArray:
        """Position after each row's tokens: that of its draft."""
        return self.starts + self.lengths

    @cached_property
    def drafted(self) -> BoolArray:
        """Whether a row brings a draft."""
        return np.asarray(self.drafts != NO_TOKEN)

    @cached_property
    def first(self) -> BoolArray:
        """Whether a row is the first of its session."""
        return firsts(self.sessions)

    @cached_property
    def builds(self) -> BoolArray:
        """Whether a row goes on tokens of an earlier message."""
        return self.first & (self.starts > 0)


def firsts(sessions: IntArray) -> BoolArray:
    """Which of some rows are the first of their sessions."""
    first = np.empty(len(sessions), np.bool_)
    first[:1] = True
    np.not_equal(sessions[1:], sessions[:-1], out=first[1:])
    return first


_NOTHING = np.zeros(0, np.int64)


def with_blocks(
    leading: Rows,
    leads: BoolArray,
    drafts: IntArray,
    counts: IntArray = _NOTHING,
    weights: IntArray = _NOTHING,
    support: IntArray = _NOTHING,
) -> Rows:
    """All rows, from those that lead a block or stand alone.

    Parameters
    ----------
    leading
        Sessions, starts, tokens and quiet of these.
    leads
        Which of all the rows they are; the first is one.
    drafts
        Of all rows: what the next row of the block goes on from.
    counts, weights, support
        Claims of all rows.
    """
    places, lead = np.arange(len(leads)), np.cumsum(leads) - 1
    behind = places - places[leads][lead]  # rows since the one that leads
    lengths = np.where(leads, leading.lengths[lead], 1)
    own = np.repeat(leads, lengths)
    tokens = np.empty(own.size, np.int64)
    tokens[own] = leading.tokens
    tokens[~own] = drafts[places[~leads] - 1]
    return Rows(
        leading.sessions[lead],
        np.where(leads, leading.starts[lead], leading.ends[lead] + behind - 1),
        lengths,
        tokens,
        drafts,
        np.where(leads, leading.quiet[lead], 1),
        ~leads,
        counts,
        weights,
        support,
    )


def check_rows(rows: Rows, shape: Shape, vocab: int, bits: int) -> None:
    """Raise :class:`InvalidField` for the first row that is out of range or contradictory."""
    sessions, drafted = rows.sessions, rows.drafted
    if np.count_nonzero(rows.first) != len(set(sessions.tolist())):
        raise InvalidField("rows of one session must be adjacent")
    for name, values, low, high in (
        ("sessions", sessions, 0, 1 << 32),
        ("starts", rows.starts, 0, 1 << 32),
        ("lengths", rows.lengths, 0, 1 << 32),
        ("quiet", rows.quiet, 0, 1 << 32),
        ("lengths - quiet", rows.lengths - rows.quiet, 0, 1 << 32),
        ("drafts", rows.drafts, NO_TOKEN, vocab),
    ):
        least, most = extremes(values)
        if least < low or most >= high:
            at = int(((values < low) | (values >= high)).argmax())
            raise InvalidField(
                f"session {sessions[at]}: {name}={values[at]} must be in [{low}, {high})"
            )
    _check_ids("tokens", rows.tokens, vocab)
    _check_blocks(rows)
    alone = {Shape.NOTHING: 0, Shape.WEIGHT: 1, Shape.PROBS: vocab}
    each = alone[shape] if shape in alone else np.maximum(rows.counts, 1)
    if np.count_nonzero(rows.counts != drafted * each):
        raise InvalidField(f"counts={rows.counts} are not those of claims of shape {shape.name}")
    if rows.support.size != (rows.weights.size if shape == Shape.SUPPORT else 0):
        raise InvalidField(f"support has {rows.support.size} ids: not those of shape {shape.name}")
    if rows.weights.size:
        _check_weights(rows, shape, vocab, bits)


def _check_blocks(rows: Rows) -> None:
    block = rows.block.nonzero()[0]
    if not block.size:
        return
    before = block - 1  # of the first row, the last one: another session, or the row itself
    expected = (rows.sessions[before], rows.ends[before], 1, 1)
    found = (rows.sessions[block], rows.starts[block], rows.lengths[block], rows.quiet[block])
    wrong = (block == 0) | ~rows.drafted[before]
    for one, other in zip(found, expected, strict=True):
        wrong |= one != other
    if not wrong.any():
        wrong = rows.tokens[np.cumsum(rows.lengths)[before]] != rows.drafts[before]
    if wrong.any():
        at = int(block[wrong.argmax()])
        raise InvalidField(
            f"session {rows.sessions[at]}: to go on a block, row {at} needs a row of this session "
            "with a draft before it, to start where that one ends, that draft as its token, and "
            "quiet 1"
        )


def _check_ids(name: str, ids: IntArray, vocab: int) -> None:
    if ids.size:
        least, most = extremes(ids)
        if least < 0 or most >= vocab:
            raise InvalidField(f"{name} must be in [0, {vocab})")


def _check_weights(rows: Rows, shape: Shape, vocab: int, bits: int) -> None:
    """Weights of claims whose sizes are right."""
    weights, counts = rows.weights, rows.counts[rows.drafted]
    if shape == Shape.WEIGHT:
        least, most = extremes(weights)
        if least < 1 or most > 1 << SCALAR_BITS:
            raise InvalidField(f"weights must be in [1, {1 << SCALAR_BITS}]")
        return
    totals, whole = np.add.reduceat(weights, np.cumsum(counts) - counts), 1 << bits
    least = 0 if shape == Shape.SUPPORT else whole
    if int(weights.min()) < 0 or int(totals.min()) < least or int(totals.max()) > whole:
        relation = "at most" if shape == Shape.SUPPORT else "exactly"
        raise InvalidField(f"weights must be >= 0, and those of a row sum to {relation} {whole}")
    if shape == Shape.SUPPORT:
        _check_ids("support", rows.support, vocab)
        places = rows.support + np.repeat(np.arange(len(counts)) * vocab, counts)
        if bool((np.diff(places) < 1).any()):
            raise InvalidField("support must increase strictly within each row")
