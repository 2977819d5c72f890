"""Rows about a device's texts as messages to the LLM server, each saying whose text it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from clients.records import TextBatch
from hlm.arrays import IntArray
from hlm.wire import Limits, PrefixDigest, Row, joint_digest

LIMITS = Limits()
"""What a server reads unless it is told otherwise."""

ROW_BYTES = 64
"""More than a row's numbers take, but for its tokens and its claim."""


def messages(rows: Sequence[Row], vocab: int, limits: Limits = LIMITS) -> Iterator[slice]:
    """Which rows go into one message: as many as a server reads, blocks in one piece.

    Parameters
    ----------
    rows : sequence of Row
        In the order they are asked in.
    vocab : int
        Size of the vocabulary.
    limits : Limits
        The server's.
    """
    most = np.array([limits.max_rows, limits.max_tokens, limits.max_weights, limits.max_bytes])
    begin, total = 0, np.zeros(4, np.int64)
    leads = [index for index, row in enumerate(rows) if not row.block]
    for index, after in zip(leads, [*leads[1:], len(rows)], strict=True):
        size = sum((_size(row, vocab) for row in rows[index:after]), np.zeros(4, np.int64))
        if index > begin and (total + size > most).any():
            yield slice(begin, index)
            begin, total = index, np.zeros(4, np.int64)
        total = total + size
    yield slice(begin, len(rows))


def _size(row: Row, vocab: int) -> IntArray:
    """Rows, tokens, weights and at most so many bytes."""
    claimed = 0 if row.weights is None else len(row.weights)
    # An id or a weight has 4 bytes at most; a support is a set of ids besides its weights.
    size = ROW_BYTES + 4 * len(row.tokens) + (2 if claimed == vocab else 8) * claimed
    return np.array([1, len(row.tokens), claimed, size], np.int64)


def digest_of(rows: Sequence[Row], texts: TextBatch, owners: Sequence[int], identity: bytes) -> int:
    """What a message says of the tokens that its rows build on; 0 if they build on none.

    Parameters
    ----------
    rows : sequence of Row
        Of one message.
    texts : TextBatch
        The device's texts; keeps the state of their digests.
    owners : sequence of int
        The text in `texts` of each row.
    identity : bytes
        Of the device process.
    """
    prefixes = []
    last = -1
    for row, owner in zip(rows, owners, strict=True):
        if row.start and row.session != last:
            if owner not in texts.digests:
                texts.digests[owner] = PrefixDigest(identity)
            prefix = texts.digests[owner].at(texts.tokens[owner], row.start)
            prefixes.append((row.session, row.start, prefix))
        last = row.session
    return joint_digest(identity, prefixes) if prefixes else 0


def resent(
    rows: Sequence[Row], again: Sequence[int], texts: TextBatch, owners: Sequence[int] | IntArray
) -> list[Row]:
    """The questions that lacked their prefix, and the whole of it in the first of each text.

    Feedback is wanted for what it was before.
    """
    found: list[Row] = []
    for i in again:
        row = rows[i]
        if not found or found[-1].session != row.session:
            end = row.start + len(row.tokens)
            whole = texts.tokens[owners[i], :end]
            row = replace(row, start=0, tokens=whole, quiet=row.start + row.quiet)
        found.append(row)
    return found
