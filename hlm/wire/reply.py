"""Replies to bytes and back. Whatever the device knows from its own request is not sent."""

import numpy as np

from hlm.arrays import IntArray
from hlm.verifiers import Shape
from hlm.wire.bit_reader import BitReader
from hlm.wire.bits import bits_needed, extremes
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded, headed, opened
from hlm.wire.messages import Reply, Request, Status
from hlm.wire.request import VERSION
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
    rows, served, statuses = request.rows, reply.served, reply.statuses.tolist()
    if len(reply) != len(rows):
        raise InvalidField(f"{len(reply)} rows answer {len(rows)}")
    unheard = request.feedback_counts * served - reply.feedback_counts
    if extremes(unheard)[0] < 0:
        raise InvalidField(f"row {int(unheard.argmin())}: has more feedback than is wanted")
    missing = unheard[served]
    complete, id_width = not np.count_nonzero(missing), bits_needed(request.vocab)
    writer = headed(REPLY_KIND, VERSION)
    writer.flag(False)  # reserved
    all_served = {Status.OK, Status.SKIPPED}.issuperset(statuses)
    writer.flag(all_served)
    writer.flag(complete)
    stands, end = True, 0
    for index, (status, block, draft, accepted, token, size) in enumerate(
        zip(
            statuses,
            rows.block.tolist(),
            rows.drafts.tolist(),
            reply.accepted.tolist(),
            reply.tokens.tolist(),
            reply.target_counts.tolist(),
            strict=True,
        )
    ):
        if (status == Status.SKIPPED) != (block and not stands):
            raise InvalidField(f"row {index}: SKIPPED is what follows the end of a block")
        if why := _wrong(request, status, draft, accepted, token, size):
            raise InvalidField(f"row {index}: {why}")
        stands = status == Status.OK and accepted
        if status == Status.SKIPPED:
            continue
        if not all_served:
            writer.uint(status, 2)
        if status != Status.OK:
            continue
        drafted = draft != NO_TOKEN
        offered = accepted if drafted else token != NO_TOKEN
        writer.flag(offered)
        if accepted or not (drafted or offered):
            continue
        if drafted and request.shape == Shape.WEIGHT:
            writer.uint(_TARGET if size else _TOKEN, 2)
        if size:
            begin, end = end, end + size
            _check_target(reply.target_weights[begin:end])
            writer.golomb(size - 1, 5)
            writer.sorted_set(reply.target_support[begin:end], request.vocab)
            writer.column(reply.target_weights[begin:end] - 1, SCALAR_BITS)
        else:
            writer.uint(token, id_width)
    if not complete:
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
    reader = opened(payload, REPLY_KIND, VERSION, limits)
    if reader.flag():
        raise InvalidField("the bit after the version must be 0")
    all_served, complete = reader.flag(), reader.flag()
    count = len(request.rows)
    statuses, tokens, accepted = [Status.OK] * count, [NO_TOKEN] * count, [False] * count
    targets, stands = _Targets(count), True
    for index, (draft, block) in enumerate(
        zip(request.rows.drafts.tolist(), request.rows.block.tolist(), strict=True)
    ):
        drafted = draft != NO_TOKEN
        status = Status.SKIPPED if block and not stands else Status.OK
        if status == Status.OK and not all_served:
            status = _status(reader.uint(2), index)
        statuses[index], stands = status, False
        if status != Status.OK:
            continue
        offered = reader.flag()
        if drafted and offered:
            tokens[index], accepted[index], stands = draft, True, True
        elif drafted and request.shape == Shape.WEIGHT and _is_target(reader.uint(2), index):
            targets.read(reader, index, request.vocab, limits)
        elif drafted or offered:
            tokens[index] = _read_token(reader, request.vocab)
    states = np.array(statuses, np.int64)
    served = states == int(Status.OK)
    counts = request.feedback_counts * served
    if not complete:
        counts[served] -= reader.column(int(np.count_nonzero(served)), 0)
        if int(counts.min()) < 0:
            raise InvalidField("more feedback is missing than was wanted")
    feedback = reader.array(int(counts.sum()), 8).astype(np.uint8)
    reader.finish()
    return Reply(
        states,
        np.array(accepted, np.bool_),
        np.array(tokens, np.int64),
        counts,
        feedback,
        *targets.columns(),
    )


class _Targets:
    """Distributions of the large model, as they are read."""

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros(rows, np.int64)
        self.parts: list[tuple[IntArray, IntArray]] = []

    def read(self, reader: BitReader, index: int, vocab: int, limits: Limits) -> None:
        size = bounded(reader.golomb(5) + 1, limits.max_weights, "weights")
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


def _wrong(request: Request, status: int, draft: int, accepted: bool, token: int, size: int) -> str:
    """Why a row's answer cannot be one; empty if it can."""
    served = status == Status.OK
    rejected = served and draft != NO_TOKEN and not accepted
    if size and not (rejected and request.shape == Shape.WEIGHT):
        return f"{request.verifier!r} sends no distribution for it"
    if rejected and (token == NO_TOKEN) != (size > 0):
        return "a rejection needs a token or a distribution (just one)"
    if served and accepted and draft == NO_TOKEN:
        return "is accepted, but it has no draft"
    if served and accepted and token != draft:
        return "what is accepted must be the draft"
    if served and not NO_TOKEN <= token < request.vocab:
        return f"token must be in [-1, {request.vocab})"
    return ""


def _check_target(weights: IntArray) -> None:
    total, whole = int(weights.sum()), 1 << SCALAR_BITS
    if int(weights.min()) < 1 or int(weights.max()) > whole or total != whole:
        raise InvalidField(f"target_weights must be >= 1 and sum to {whole}; {total}")
