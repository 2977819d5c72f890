"""Replies to bytes and back. Whatever the device knows from its own request is not sent."""

from collections.abc import Sequence

import numpy as np

from hlm.arrays import IntArray
from hlm.verifiers import Shape
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.errors import InvalidField, OversizedMessage
from hlm.wire.messages import (
    NO_TOKEN,
    SCALAR_BITS,
    ByteArray,
    Limits,
    Reply,
    Request,
    RowReply,
    Status,
)
from hlm.wire.request import VERSION, check_kind

REPLY_KIND = 0xB
"""High half of a reply's first byte; the low half is the version."""

_TOKEN, _LAW = range(2)
_DEFAULT_LIMITS = Limits()


def encode_reply(reply: Reply, request: Request) -> bytes:
    """Bytes of ``reply`` to ``request``.

    Raises
    ------
    InvalidField
        If the reply does not fit the request: number of rows, a token where none can be, feedback
        nobody asked for, a law that does not sum to one.
    """
    if len(reply.rows) != len(request.rows):
        raise InvalidField(f"{len(reply.rows)} rows answer {len(request.rows)}")
    _check_skips(reply, request)
    present = [index for index, row in enumerate(reply.rows) if row.status != Status.SKIPPED]
    served = [index for index in present if reply.rows[index].status == Status.OK]
    writer = BitWriter()
    writer.uint(REPLY_KIND, 4)
    writer.uint(VERSION, 4)
    writer.flag(False)  # reserved
    all_served = all(row.status in (Status.OK, Status.SKIPPED) for row in reply.rows)
    writer.flag(all_served)
    feedback_as_expected = all(
        _feedback_size(reply.rows[index]) == request.feedback_count(index) for index in served
    )
    writer.flag(feedback_as_expected)
    for index in present:
        _write_row(writer, reply.rows[index], request, index, all_served)
    _write_feedback(writer, reply, request, served, feedback_as_expected)
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
    all_served, feedback_as_expected = reader.flag(), reader.flag()
    rows: list[RowReply] = []
    for index in range(len(request.rows)):
        if _goes_unanswered(rows, request, index):
            rows.append(RowReply(Status.SKIPPED))
        else:
            rows.append(_read_row(reader, request, index, all_served, limits))
    feedback = _read_feedback(reader, rows, request, feedback_as_expected)
    reader.finish()
    return Reply(
        tuple(
            RowReply(
                row.status,
                row.accepted,
                row.token,
                feedback.get(index),
                row.target_support,
                row.target_weights,
            )
            for index, row in enumerate(rows)
        )
    )


def _goes_unanswered(rows: Sequence[RowReply], request: Request, index: int) -> bool:
    """Whether row ``index`` follows, in its block, a row that was rejected or not served."""
    if not request.rows[index].block:
        return False
    before = rows[index - 1]
    return before.status != Status.OK or not before.accepted


def _check_skips(reply: Reply, request: Request) -> None:
    for index, row in enumerate(reply.rows):
        after = _goes_unanswered(reply.rows, request, index)
        if (row.status == Status.SKIPPED) != after:
            raise InvalidField(
                f"row {index}: status {row.status.name}, but it "
                f"{'follows' if after else 'does not follow'} a row that ends its block"
            )


def _write_row(
    writer: BitWriter, row: RowReply, request: Request, index: int, all_served: bool
) -> None:
    asked = request.rows[index]
    if not all_served:
        writer.uint(row.status, 2)
    if row.status != Status.OK:
        return
    if not NO_TOKEN <= row.token < request.vocab:
        raise InvalidField(f"row {index}: token={row.token} must be in [-1, {request.vocab})")
    id_width = bits_needed(request.vocab)
    if asked.draft == NO_TOKEN:
        if row.accepted:
            raise InvalidField(f"row {index}: accepted, but it has no draft")
        writer.flag(row.token != NO_TOKEN)
        if row.token != NO_TOKEN:
            writer.uint(row.token, id_width)
        return
    writer.flag(row.accepted)
    if row.accepted:
        if row.token != asked.draft:
            raise InvalidField(f"row {index}: accepted {row.token}, drafted {asked.draft}")
        return
    if request.shape == Shape.WEIGHT:
        _write_resampling(writer, row, request, index)
    elif row.token == NO_TOKEN:
        raise InvalidField(f"row {index}: a rejection by {request.verifier!r} needs a token")
    else:
        writer.uint(row.token, id_width)


def _write_resampling(writer: BitWriter, row: RowReply, request: Request, index: int) -> None:
    id_width = bits_needed(request.vocab)
    if (row.target_support is None) == (row.token == NO_TOKEN):
        raise InvalidField(f"row {index}: a rejection needs a token or a law (just one)")
    writer.uint(_TOKEN if row.target_support is None else _LAW, 2)
    if row.target_support is not None:
        weights = row.target_weights
        if weights is None or weights.shape != row.target_support.shape:
            raise InvalidField(f"row {index}: target_weights must match target_support")
        _check_target(weights, index)
        writer.golomb(weights.size - 1, 5)
        writer.sorted_set(row.target_support.astype(np.int64), request.vocab)
        writer.column(weights.astype(np.int64) - 1, SCALAR_BITS)
    else:
        writer.uint(row.token, id_width)


def _write_feedback(
    writer: BitWriter, reply: Reply, request: Request, served: list[int], as_expected: bool
) -> None:
    bytes_of_rows = []
    for index, row in enumerate(reply.rows):
        size, most = _feedback_size(row), request.feedback_count(index)
        if size > (most if row.status == Status.OK else 0):
            raise InvalidField(f"row {index}: {size} feedback bytes where {most} are wanted")
        if row.feedback is not None:
            bytes_of_rows.append(row.feedback)
    if not as_expected:
        missing = [request.feedback_count(i) - _feedback_size(reply.rows[i]) for i in served]
        writer.column(missing, 0)
    if bytes_of_rows:
        writer.array(np.concatenate(bytes_of_rows), 8)


def _read_row(
    reader: BitReader, request: Request, index: int, all_served: bool, limits: Limits
) -> RowReply:
    code = Status.OK if all_served else reader.uint(2)
    if code > Status.REFUSED:
        raise InvalidField(f"row {index}: status {code}; known are 0 to {Status.REFUSED:d}")
    if code != Status.OK:
        return RowReply(Status(code))
    draft = request.rows[index].draft
    if draft == NO_TOKEN:
        return RowReply(token=_read_token(reader, request) if reader.flag() else NO_TOKEN)
    if reader.flag():
        return RowReply(accepted=True, token=draft)
    if request.shape == Shape.WEIGHT:
        return _read_resampling(reader, request, index, limits)
    return RowReply(token=_read_token(reader, request))


def _read_resampling(reader: BitReader, request: Request, index: int, limits: Limits) -> RowReply:
    form = reader.uint(2)
    if form == _TOKEN:
        return RowReply(token=_read_token(reader, request))
    if form == _LAW:
        size = reader.golomb(5) + 1
        if size > limits.max_weights:
            raise OversizedMessage(f"{size} weights; at most {limits.max_weights} are allowed")
        support = reader.sorted_set(size, request.vocab)
        weights = reader.column(size, SCALAR_BITS) + 1
        _check_target(weights, index)
        return RowReply(target_support=support, target_weights=weights)
    raise InvalidField(f"row {index}: resampling form {form}; known are 0 to {_LAW}")


def _read_token(reader: BitReader, request: Request) -> int:
    token = reader.uint(bits_needed(request.vocab))
    if token >= request.vocab:
        raise InvalidField(f"token={token} must be in [0, {request.vocab})")
    return token


def _read_feedback(
    reader: BitReader, rows: list[RowReply], request: Request, as_expected: bool
) -> dict[int, ByteArray]:
    served = [index for index, row in enumerate(rows) if row.status == Status.OK]
    counts = np.array([request.feedback_count(index) for index in served], dtype=np.int64)
    if not as_expected:
        counts = counts - reader.column(len(served), 0)
        if served and int(counts.min()) < 0:
            raise InvalidField("more feedback is missing than was wanted")
    flat = reader.array(int(counts.sum()), 8).astype(np.uint8)
    return dict(zip(served, np.split(flat, np.cumsum(counts)[:-1]), strict=False))


def _feedback_size(row: RowReply) -> int:
    return 0 if row.feedback is None else row.feedback.size


def _check_target(weights: IntArray, index: int) -> None:
    total, whole = int(weights.sum()), 1 << SCALAR_BITS
    if int(weights.min()) < 1 or int(weights.max()) > whole or total != whole:
        raise InvalidField(f"row {index}: target_weights must be >= 1 and sum to {whole}; {total}")
