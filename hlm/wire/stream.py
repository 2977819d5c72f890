"""Streams: a request whose rows the large model goes on writing (layout: ``docs/spans.md``).

An *opening* wraps an ordinary request, whose bytes stay as they are. The server answers with
*frames* (`hlm.wire.frames`). Meanwhile a *control* tells how far it may go and which rows the
device takes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from hlm.wire.bit_writer import BitWriter
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded, headed, opened
from hlm.wire.messages import Request
from hlm.wire.request import decode_request, encode_request
from hlm.wire.rows import Limits

VERSION = 1
OPENING_KIND, CONTROL_KIND, ANSWER_KIND = 0x7, 0x8, 0x9
"""High halves of first bytes; the low half is the version."""
KEY_BITS = 64
ANSWER_BYTES = 2
"""Length of the answer to a control."""
STREAMED = ("greedy", "coupled")
"""Verifiers whose verdict is the large model's own token, so that it can go on from there."""

_DEFAULT_LIMITS = Limits()


class Outcome(IntEnum):
    """What became of a control."""

    APPLIED = 0
    UNKNOWN = 1
    """No stream of this key is being written."""
    REFUSED = 2
    """It names a row that the opening has not, or more tokens than were sent: nothing was done."""


@dataclass(frozen=True)
class Opening:
    """A request and how the large model goes on after its verdicts.

    Parameters
    ----------
    request
        Decided by a verifier of :data:`STREAMED`; one row a session, none in a block. After a row
        without a draft the model goes on from the row's tokens.
    key
        The device draws it at random, in [0, 2**64): whoever knows it controls the stream.
    span
        Most tokens of a row after its verdict, >= 1.
    credit
        Tokens of a row after its verdict that may be written before a control allows more, >= 0.
    """

    request: Request
    key: int
    span: int
    credit: int


@dataclass(frozen=True)
class Control:
    """What a device says while it reads a stream.

    Parameters
    ----------
    key
        The stream's.
    credit
        Tokens that each row may have after its verdict from now on; less than before changes
        nothing.
    stops
        Rows of the opening that are taken back, and how many of their streamed tokens the device
        takes.
    """

    key: int
    credit: int
    stops: Mapping[int, int] = field(default_factory=dict)


def encode_opening(opening: Opening) -> bytes:
    """Bytes of ``opening``.

    Raises
    ------
    InvalidField
        If a field is out of range, or the request cannot be streamed.
    """
    _check_opening(opening, _DEFAULT_LIMITS)
    writer = _headed(OPENING_KIND, opening.key)
    writer.golomb(opening.span - 1, 5)
    writer.golomb(opening.credit, 3)
    return writer.getvalue() + encode_request(opening.request)


def decode_opening(payload: bytes, limits: Limits = _DEFAULT_LIMITS) -> Opening:
    """The opening that ``payload`` holds.

    Raises
    ------
    WireError
        As :func:`~hlm.wire.decode_request`; nothing else, whatever the bytes.
    """
    reader = opened(payload, OPENING_KIND, VERSION, limits)
    key, span, credit = reader.uint(KEY_BITS), reader.golomb(5) + 1, reader.golomb(3)
    if reader.uint(reader.remaining % 8):
        raise InvalidField("the padding before a streamed request must be 0")
    request = decode_request(payload[len(payload) - reader.remaining // 8 :], limits)
    opening = Opening(request, key, span, credit)
    _check_opening(opening, limits)
    return opening


def encode_control(control: Control) -> bytes:
    """Bytes of ``control``.

    Raises
    ------
    InvalidField
        If a field is out of range.
    """
    rows = sorted(control.stops)
    writer = _headed(CONTROL_KIND, control.key)
    writer.golomb(control.credit, 3)
    writer.golomb(len(rows), 0)
    writer.column(rows, 3)
    writer.column([control.stops[row] for row in rows], 1)
    return writer.getvalue()


def decode_control(payload: bytes, limits: Limits = _DEFAULT_LIMITS) -> Control:
    """The control that ``payload`` holds.

    Raises
    ------
    WireError
        As :func:`~hlm.wire.decode_request`; nothing else, whatever the bytes.
    """
    reader = opened(payload, CONTROL_KIND, VERSION, limits)
    key, credit = reader.uint(KEY_BITS), reader.golomb(3)
    count = bounded(reader.golomb(0), limits.max_rows, "stops")
    rows, taken = reader.column(count, 3), reader.column(count, 1)
    reader.finish()
    if count and bool((np.diff(rows) < 1).any()):
        raise InvalidField("stops must be of increasing rows")
    return Control(key, credit, dict(zip(rows.tolist(), taken.tolist(), strict=True)))


def encode_answer(outcome: Outcome) -> bytes:
    """What the server says to a control."""
    return bytes([ANSWER_KIND << 4 | VERSION, outcome])


def is_control(payload: bytes) -> bool:
    """Whether a message says that it is a control."""
    return bool(payload) and payload[0] >> 4 == CONTROL_KIND


def _headed(kind: int, key: int) -> BitWriter:
    if not 0 <= key < 1 << KEY_BITS:
        raise InvalidField(f"key={key} must be in [0, 2**{KEY_BITS})")
    writer = headed(kind, VERSION)
    writer.uint(key, KEY_BITS)
    return writer


def _check_opening(opening: Opening, limits: Limits) -> None:
    request, most = opening.request, limits.max_tokens_per_row
    if request.verifier not in STREAMED:
        allowed = " and ".join(map(repr, STREAMED))
        raise InvalidField(
            f"verifier={request.verifier!r} cannot be streamed: only {allowed} decide by the large "
            "model's own token"
        )
    if request.verifier == "greedy" and request.decoding != "greedy":
        raise InvalidField("decoding='sampled' is streamed by verifier 'coupled' alone")
    for name, value, low in (("span", opening.span, 1), ("credit", opening.credit, 0)):
        if not low <= value <= most:
            raise InvalidField(f"{name}={value} must be in [{low}, {most}]")
    if not request.rows.first.all():
        raise InvalidField("a stream has one row a session, and no blocks")
