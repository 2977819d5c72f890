"""Messages between a device and its edge server: questions and shared tokens up, answers down.

One :class:`EdgeQuery` carries both: what the device learnt since the last message, and the rows it
asks about now. A shared token that was asked about before names that question instead of sending
its context key again: 2 bytes rather than 10. Layouts are in ``docs/edge.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import IntArray
from hlm.wire.bit_reader import BitReader
from hlm.wire.bits import bits_needed
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded, headed, opened
from hlm.wire.rows import Limits

EDGE_QUERY_KIND = 0xC
EDGE_REPLY_KIND = 0xD
NOT_RESOLVED, RESOLVED_BY_PEERS, RESOLVED_BY_NEIGHBOUR = range(3)
MOST_NUMBERS = 1 << 16
"""Questions are numbered modulo this."""

Sketches = NDArray[np.uint8]
EDGE_VERSION = 1
"""Of the messages of the edge tier."""
_WORD = 8  # sketches are whole words of 64 bits
_LIMITS = Limits()


def _no_ints() -> IntArray:
    return np.zeros(0, dtype=np.int64)


def _no_keys() -> Sketches:
    return np.zeros((0, 0), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class EdgeShare:
    """Tokens a device passes on to its peers.

    Attributes
    ----------
    numbers, rows, answers : ndarray of int64 [m]
        The verified token ``answers[i]`` of row ``rows[i]`` of the device's question
        ``numbers[i]``: the edge server still has the key.
    keys : ndarray of uint8 [n, key bytes]
        Sketches of contexts that were not asked about.
    tokens : ndarray of int64 [n]
        Their tokens.
    verified : ndarray of bool [n]
        Whether the LLM decided the token. The device says so; docs/edge.md has the trust model.
    """

    numbers: IntArray = field(default_factory=_no_ints)
    rows: IntArray = field(default_factory=_no_ints)
    answers: IntArray = field(default_factory=_no_ints)
    keys: Sketches = field(default_factory=_no_keys)
    tokens: IntArray = field(default_factory=_no_ints)
    verified: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def __len__(self) -> int:
        """Number of tokens shared."""
        return len(self.answers) + len(self.tokens)


@dataclass(frozen=True, eq=False)
class EdgeQuery:
    """One message from a device, or from a neighbouring edge server, to an edge server.

    Attributes
    ----------
    client : int
        Number of the device; of the edge server if `between`.
    number : int
        Number of the question in [0, 65536), counted by the device.
    vocab : int
        Size of the vocabulary.
    keys : ndarray of uint8 [n, key bytes]
        Sketches of the contexts asked about; of width 0 where peers go by step.
    drafts : ndarray of int64 [n]
        The device's own tokens.
    steps : ndarray of int64 [n] or None
        Step of each row; only where peers go by step (peer-mode `paper`).
    between : bool
        Asked by a neighbouring edge server on behalf of its own devices.
    share : EdgeShare
        What the device learnt since its last message.
    """

    client: int
    number: int
    vocab: int
    keys: Sketches
    drafts: IntArray
    steps: IntArray | None = None
    between: bool = False
    share: EdgeShare = field(default_factory=EdgeShare)


@dataclass(frozen=True, eq=False)
class EdgeReply:
    """What an edge server knows about the rows of one question.

    Attributes
    ----------
    outcomes : ndarray of int64 [n]
        `NOT_RESOLVED`, `RESOLVED_BY_PEERS` or `RESOLVED_BY_NEIGHBOUR`.
    tokens : ndarray of int64 [n]
        -1 where not resolved.
    empty : bool
        Nothing is resolved because the edge server holds nothing of other devices yet: that says
        little about what asking is worth.
    """

    outcomes: IntArray
    tokens: IntArray
    empty: bool = False


def encode_edge_query(query: EdgeQuery) -> bytes:
    """Bytes of a query.

    Raises
    ------
    InvalidField
        If a field is out of range or two of them differ in length.
    """
    _check_query(query)
    share, rows = query.share, len(query.drafts)
    width = query.keys.shape[1] if rows else share.keys.shape[1]
    id_width = bits_needed(query.vocab)
    writer = headed(EDGE_QUERY_KIND, EDGE_VERSION)
    writer.flag(query.between)
    writer.flag(query.steps is not None)
    writer.flag(len(share) > 0)
    writer.flag(bool(share.verified.all()))
    writer.golomb(query.vocab - 2, 12)
    writer.sized(query.client)
    writer.golomb(query.number, 7)
    writer.golomb(width // _WORD, 0)
    writer.golomb(rows, 3)
    writer.array(query.drafts, id_width)
    if query.steps is not None:
        writer.column(query.steps, 5)
    writer.array(query.keys.reshape(-1).astype(np.int64), 8)
    if len(share):
        writer.golomb(len(share.answers), 2)
        writer.golomb(len(share.tokens), 2)
        writer.column(share.numbers, 7)
        writer.column(share.rows, 3)
        writer.array(share.answers, id_width)
        writer.array(share.tokens, id_width)
        if not share.verified.all():
            writer.bits(share.verified)
        writer.array(share.keys.reshape(-1).astype(np.int64), 8)
    return writer.getvalue()


def decode_edge_query(payload: bytes, limits: Limits = _LIMITS) -> EdgeQuery:
    """The query that `payload` holds.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes; nothing else.
    """
    reader = opened(payload, EDGE_QUERY_KIND, EDGE_VERSION, limits)
    between, stepped, sharing, all_verified = (reader.flag() for _ in range(4))
    vocab = bounded(reader.golomb(12) + 2, limits.max_vocab, "vocab")
    client = reader.sized()
    number = bounded(reader.golomb(7), MOST_NUMBERS - 1, "number")
    width = _WORD * bounded(reader.golomb(0), 32, "key words")
    rows = bounded(reader.golomb(3), limits.max_rows, "rows")
    id_width = bits_needed(vocab)
    drafts = reader.array(rows, id_width)
    steps = reader.column(rows, 5) if stepped else None
    keys = _read_keys(reader, rows, width)
    share = EdgeShare()
    if sharing:
        answered = bounded(reader.golomb(2), limits.max_rows, "answers")
        fresh = bounded(reader.golomb(2), limits.max_rows, "shared tokens")
        numbers, of_rows = reader.column(answered, 7), reader.column(answered, 3)
        answers, tokens = reader.array(answered, id_width), reader.array(fresh, id_width)
        verified = np.ones(fresh, dtype=np.bool_)
        if not all_verified:
            verified = reader.bits(fresh).astype(np.bool_)
        fresh_keys = _read_keys(reader, fresh, width)
        share = EdgeShare(numbers, of_rows, answers, fresh_keys, tokens, verified)
        if not len(share) or bool(verified.all()) != all_verified:
            raise InvalidField("the flags of the shared tokens contradict them")
    elif not all_verified:
        raise InvalidField("the flags of the shared tokens contradict them")
    reader.finish()
    query = EdgeQuery(client, number, vocab, keys, drafts, steps, between, share)
    _check_query(query)
    return query


def encode_edge_reply(reply: EdgeReply, query: EdgeQuery) -> bytes:
    """Bytes of the reply to `query`.

    Raises
    ------
    InvalidField
        If the reply has another number of rows, or a token is outside the vocabulary.
    """
    _check_reply(reply, query)
    resolved = reply.outcomes != NOT_RESOLVED
    other = reply.tokens[resolved] != query.drafts[resolved]
    writer = headed(EDGE_REPLY_KIND, EDGE_VERSION)
    if len(reply.outcomes):
        writer.flag(bool(resolved.any()))
    if len(reply.outcomes) and not resolved.any():
        writer.flag(reply.empty)
    if resolved.any():
        writer.array(reply.outcomes, 2)
        writer.bits(other)
        writer.array(reply.tokens[resolved][other], bits_needed(query.vocab))
    return writer.getvalue()


def decode_edge_reply(payload: bytes, query: EdgeQuery, limits: Limits = _LIMITS) -> EdgeReply:
    """The reply to `query` that `payload` holds.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes; nothing else.
    """
    reader = opened(payload, EDGE_REPLY_KIND, EDGE_VERSION, limits)
    rows = len(query.drafts)
    outcomes, tokens = np.zeros(rows, np.int64), np.full(rows, -1, np.int64)
    some = rows > 0 and reader.flag()
    empty = rows > 0 and not some and reader.flag()
    if some:
        outcomes = reader.array(rows, 2)
        resolved = np.flatnonzero(outcomes != NOT_RESOLVED)
        other = reader.bits(len(resolved)).astype(np.bool_)
        tokens[resolved] = query.drafts[resolved]
        tokens[resolved[other]] = reader.array(int(other.sum()), bits_needed(query.vocab))
        if not len(resolved) or (tokens[resolved[other]] == query.drafts[resolved[other]]).any():
            raise InvalidField("the flags of the reply contradict its rows")
    reader.finish()
    reply = EdgeReply(outcomes, tokens, empty)
    _check_reply(reply, query)
    return reply


def _check_query(query: EdgeQuery) -> None:
    rows, share = len(query.drafts), query.share
    if not 2 <= query.vocab <= 1 << 24:
        raise InvalidField(f"vocab={query.vocab} must be in [2, 2**24]")
    if not 0 <= query.number < MOST_NUMBERS:
        raise InvalidField(f"number={query.number} must be in [0, {MOST_NUMBERS})")
    _check_ids("drafts", query.drafts, query.vocab)
    _check_ids("answers", share.answers, query.vocab)
    _check_ids("tokens", share.tokens, query.vocab)
    for name, keys, count in (("keys", query.keys, rows), ("shared keys", share.keys, None)):
        wanted = len(share.tokens) if count is None else count
        if keys.ndim != 2 or keys.dtype != np.uint8 or len(keys) != wanted:
            raise InvalidField(
                f"{name} are {keys.dtype} {keys.shape}; expected uint8 [{wanted}, w]"
            )
        if keys.shape[1] % _WORD:
            raise InvalidField(f"{name} are {keys.shape[1]} bytes wide; need a multiple of {_WORD}")
    if rows and len(share.tokens) and query.keys.shape[1] != share.keys.shape[1]:
        raise InvalidField(
            f"keys are {query.keys.shape[1]} bytes wide, shared ones {share.keys.shape[1]}"
        )
    if query.steps is not None and query.steps.shape != (rows,):
        raise InvalidField(f"steps have shape {query.steps.shape}; expected ({rows},)")
    if not len(share.numbers) == len(share.rows) == len(share.answers):
        raise InvalidField("numbers, rows and answers of shared tokens differ in length")
    if len(share.verified) != len(share.tokens):
        raise InvalidField("verified and tokens of shared tokens differ in length")
    if len(share.numbers) and int(share.numbers.max()) >= MOST_NUMBERS:
        raise InvalidField(f"numbers of shared tokens must be below {MOST_NUMBERS}")


def _check_ids(name: str, tokens: IntArray, vocab: int) -> None:
    if tokens.ndim != 1 or (len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab):
        raise InvalidField(f"{name} must be a vector of ids in [0, {vocab})")


def _check_reply(reply: EdgeReply, query: EdgeQuery) -> None:
    rows = len(query.drafts)
    if reply.outcomes.shape != (rows,) or reply.tokens.shape != (rows,):
        raise InvalidField(f"a reply of {len(reply.outcomes)} rows to a question of {rows}")
    if rows and not 0 <= reply.outcomes.min() <= reply.outcomes.max() <= RESOLVED_BY_NEIGHBOUR:
        raise InvalidField(f"outcomes must be in [0, {RESOLVED_BY_NEIGHBOUR}]")
    if reply.empty and (reply.outcomes != NOT_RESOLVED).any():
        raise InvalidField("an edge server that holds nothing resolves nothing")
    _check_ids("tokens", reply.tokens[reply.outcomes != NOT_RESOLVED], query.vocab)


def _read_keys(reader: BitReader, rows: int, width: int) -> Sketches:
    octets = reader.array(rows * width, 8)
    return octets.astype(np.uint8).reshape(rows, width)
