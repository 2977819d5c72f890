"""Replies to bytes and back. Whatever the device knows from its own request is not sent."""

import numpy as np

from hlm.arrays import IntArray
from hlm.verifiers import Shape
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.errors import InvalidField, OversizedMessage
from hlm.wire.messages import Reply, Request, Status
from hlm.wire.request import VERSION, check_kind
from hlm.wire.rows import NO_TOKEN, SCALAR_BITS, Limits

REPLY_KIND = 0xB
"""High half of a reply's first byte; the low half is the version."""

_TOKEN, _TARGET = range(2)
_DEFAULT_LIMITS = Limits()


def encode_reply(reply: Reply, request: Request) -> bytes:
    """Bytes of ``reply`` to ``request``.

    Raises
    ------
    InvalidField
        If the reply does not fit the request: number of rows, a token where none can be, feedback
        nobody asked for, a distribution that does not sum to one.
    """
    _check(reply, request)
    served, shape = reply.served, request.shape
    missing = (request.feedback_counts - reply.feedback_counts)[served]
    ends, id_width = np.cumsum(reply.target_counts).tolist(), bits_needed(request.vocab)
    writer = BitWriter()
    writer.uint(REPLY_KIND, 4)
    writer.uint(VERSION, 4)
    writer.flag(False)  # reserved
    all_served = bool((served | (reply.statuses == Status.SKIPPED)).all())
    writer.flag(all_served)
    writer.flag(not missing.any())
    for index, (status, drafted, accepted, token, size) in enumerate(
        zip(
            reply.statuses.tolist(),
            request.rows.drafted.tolist(),
            reply.accepted.tolist(),
            reply.tokens.tolist(),
            reply.target_counts.tolist(),
            strict=True,
        )
    ):
        if status == Status.SKIPPED:
            continue
        if not all_served:
            writer.uint(status, 2)
        if status != Status.OK:
            continue
        offered = accepted if drafted else token != NO_TOKEN
        writer.flag(offered)
        if accepted or not (drafted or offered):
            continue
        if drafted and shape == Shape.WEIGHT:
            writer.uint(_TARGET if size else _TOKEN, 2)
        if size:
            part = slice(ends[index] - size, ends[index])
            writer.golomb(size - 1, 5)
            writer.sorted_set(reply.target_support[part], request.vocab)
            writer.column(reply.target_weights[part] - 1, SCALAR_BITS)
        else:
            writer.uint(token, id_width)
    if missing.any():
        writer.column(missing, 0)
    writer.array(reply.feedback, 8)
    return writer.getvalue()


def decode_reply(payload: bytes, request: Request, limits: Limits = _DEFAULT_LIMITS) -> Reply:
    """The reply to ``request`` that ``payload`` holds.

    Raises
    ------
    WireError
        As :func:`~hlm.wire.decode_request`; nothing else, whatever the bytes.
    """
    if len(payload) > limits.max_bytes:
        raise OversizedMessage(f"{len(payload)} bytes; at most {limits.max_bytes} are allowed")
    reader = BitReader(payload)
    check_kind(reader, REPLY_KIND)
    if reader.flag():
        raise InvalidField("the bit after the version must be 0")
    all_served, complete = reader.flag(), reader.flag()
    count = len(request.rows)
    statuses, tokens = np.zeros(count, np.int64), np.full(count, NO_TOKEN)
    accepted, targets = np.zeros(count, np.bool_), _Targets(count)
    stands = True
    for index, (drafted, block) in enumerate(
        zip(request.rows.drafted.tolist(), request.rows.block.tolist(), strict=True)
    ):
        status = Status.SKIPPED if block and not stands else Status.OK
        if status == Status.OK and not all_served:
            status = _status(reader.uint(2), index)
        statuses[index], stands = status, False
        if status != Status.OK:
            continue
        offered = reader.flag()
        if drafted and offered:
            accepted[index] = stands = True
        elif drafted and request.shape == Shape.WEIGHT and _is_target(reader.uint(2), index):
            targets.read(reader, index, request.vocab, limits)
        elif drafted or offered:
            tokens[index] = _read_token(reader, request.vocab)
    tokens[accepted] = request.rows.drafts[accepted]
    served = statuses == Status.OK
    counts = np.where(served, request.feedback_counts, 0)
    if not complete:
        counts[served] -= reader.column(int(served.sum()), 0)
        if int(counts.min()) < 0:
            raise InvalidField("more feedback is missing than was wanted")
    feedback = reader.array(int(counts.sum()), 8).astype(np.uint8)
    reader.finish()
    return Reply(statuses, accepted, tokens, counts, feedback, *targets.columns())


class _Targets:
    """Distributions of the large model, as they are read."""

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros(rows, np.int64)
        self.parts: list[tuple[IntArray, IntArray]] = []

    def read(self, reader: BitReader, index: int, vocab: int, limits: Limits) -> None:
        size = reader.golomb(5) + 1
        if size > limits.max_weights:
            raise OversizedMessage(f"{size} weights; at most {limits.max_weights} are allowed")
        self.counts[index] = size
        self.parts.append((reader.sorted_set(size, vocab), reader.column(size, SCALAR_BITS) + 1))
        _check_target(self.parts[-1][1])

    def columns(self) -> tuple[IntArray, IntArray, IntArray]:
        if not self.parts:
            return self.counts, np.zeros(0, np.int64), np.zeros(0, np.int64)
        support, weights = zip(*self.parts, strict=True)
        return self.counts, np.concatenate(support), np.concatenate(weights)


def _status(code: int, index: int) -> Status:
    if code > Status.REFUSED:
        raise InvalidField(f"row {index}: status {code}; known are 0 to {Status.REFUSED:d}")
    return Status(code)


def _is_target(form: int, index: int) -> bool:
    if form > _TARGET:
        raise InvalidField(f"row {index}: resampling form {form}; known are 0 to {_TARGET}")
    return form == _TARGET


def _read_token(reader: BitReader, vocab: int) -> int:
    token = reader.uint(bits_needed(vocab))
    if token >= vocab:
        raise InvalidField(f"token={token} must be in [0, {vocab})")
    return token


def _check(reply: Reply, request: Request) -> None:
    """Raise :class:`InvalidField` for the first row that does not fit the request."""
    rows = request.rows
    if len(reply) != len(rows):
        raise InvalidField(f"{len(reply)} rows answer {len(rows)}")
    served, accepted, tokens = reply.served, reply.accepted, reply.tokens
    stands = np.append(True, served & accepted)[:-1]  # of the row before
    rejected, targets = served & rows.drafted & ~accepted, reply.target_counts > 0
    many = served * request.feedback_counts
    by_device = rejected & targets & (request.shape == Shape.WEIGHT)
    for wrong, why in (
        (
            (reply.statuses == Status.SKIPPED) != (rows.block & ~stands),
            "is SKIPPED if and only if it follows a row that ends its block",
        ),
        (
            served & ((tokens < NO_TOKEN) | (tokens >= request.vocab)),
            f"token must be in [-1, {request.vocab})",
        ),
        (served & accepted & ~rows.drafted, "is accepted, but it has no draft"),
        (served & accepted & (tokens != rows.drafts), "what is accepted must be the draft"),
        (targets & ~by_device, f"{request.verifier!r} sends no distribution for it"),
        (
            rejected & ((tokens == NO_TOKEN) != targets),
            "a rejection needs a token or a distribution (just one)",
        ),
        (reply.feedback_counts > many, "has more feedback than is wanted"),
    ):
        if wrong.any():
            raise InvalidField(f"row {int(wrong.argmax())}: {why}")
    for part in np.split(reply.target_weights, np.cumsum(reply.target_counts[targets])[:-1]):
        if part.size:
            _check_target(part)


def _check_target(weights: IntArray) -> None:
    total, whole = int(weights.sum()), 1 << SCALAR_BITS
    if int(weights.min()) < 1 or int(weights.max()) > whole or total != whole:
        raise InvalidField(f"target_weights must be >= 1 and sum to {whole}; {total}")
