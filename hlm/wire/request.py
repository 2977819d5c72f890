"""Requests to bytes and back; ``docs/wire.md`` shows the layout."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from hlm.arrays import IntArray
from hlm.verifiers import Shape
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.checks import check_request
from hlm.wire.errors import OversizedMessage, UnsupportedVersion
from hlm.wire.laws import (
    read_dense,
    read_probabilities,
    read_supports,
    write_dense,
    write_probabilities,
    write_supports,
)
from hlm.wire.messages import NO_TOKEN, VERIFIER_SHAPES, Limits, Request, Row, following_row
from hlm.wire.prefix import DIGEST_BITS, IDENTITY_BYTES

VERSION = 2
REQUEST_KIND = 0xA
"""High half of a request's first byte; the low half is :data:`VERSION`."""

_VERIFIERS = tuple(VERIFIER_SHAPES)
_DEFAULT_LAW, _DECIMAL_LAW, _FLOAT_LAW = range(3)
_DECIMALS = 10_000
_DEFAULT_LIMITS = Limits()


def encode_request(request: Request) -> bytes:
    """Bytes of ``request``.

    Parameters
    ----------
    request
        What to say.

    Raises
    ------
    InvalidField
        If a field is out of range, or a row's claim has not the verifier's shape.
    """
    shape = request.shape
    check_request(request)
    rows = request.rows
    leading = [row for row in rows if not row.block]
    drafted = [row.draft != NO_TOKEN for row in rows]
    asking = [row for row in rows if row.draft != NO_TOKEN]
    ids = _joined([*(row.tokens for row in leading), np.array([row.draft for row in asking])])
    law = _law_form(request)
    any_quiet = any(row.quiet for row in leading)

    writer = BitWriter()
    writer.uint(REQUEST_KIND, 4)
    writer.uint(VERSION, 4)
    writer.uint(_VERIFIERS.index(request.verifier), 4)
    writer.flag(request.feedback)
    writer.flag(request.decoding == "sampled")
    writer.uint(law, 2)
    writer.flag(request.bits == 16)
    writer.flag(any_quiet)
    writer.flag(all(drafted))
    writer.flag(len(leading) < len(rows))
    writer.golomb(request.vocab - 2, 12)
    writer.sized(request.client)
    writer.sized(request.seed)
    _write_law(writer, request, law)
    writer.golomb(len(rows) - 1, 3)
    writer.column([row.session for row in rows], 3)
    if len(leading) < len(rows):
        writer.bits([row.block for last, row in pairwise(rows) if row.session == last.session])
    writer.column([row.start for row in leading], 5)
    writer.column([len(row.tokens) for row in leading], 1)
    if any_quiet:
        writer.column([row.quiet for row in leading], 5)
    if not all(drafted):
        writer.bits(drafted)
    if request.begins:
        writer.uint(int.from_bytes(request.identity, "big"), 8 * IDENTITY_BYTES)
    if any(request.builds(index) for index in range(len(rows))):
        writer.uint(request.digest, DIGEST_BITS)
    writer.array(ids, bits_needed(request.vocab))
    if asking:
        _write_claims(writer, request, asking, shape)
    return writer.getvalue()


def decode_request(payload: bytes, limits: Limits = _DEFAULT_LIMITS) -> Request:
    """The request that ``payload`` holds.

    Parameters
    ----------
    payload
        The bytes.
    limits
        Largest request that is read.

    Raises
    ------
    WireError
        :class:`TruncatedMessage`, :class:`TrailingData`, :class:`OversizedMessage`,
        :class:`UnsupportedVersion` or :class:`InvalidField`; nothing else, whatever the bytes.
    """
    if len(payload) > limits.max_bytes:
        raise OversizedMessage(f"{len(payload)} bytes; at most {limits.max_bytes} are allowed")
    reader = BitReader(payload)
    check_kind(reader, REQUEST_KIND)
    code = reader.uint(4)
    if code >= len(_VERIFIERS):
        raise UnsupportedVersion(f"verifier code {code}; known are 0 to {len(_VERIFIERS) - 1}")
    feedback = reader.flag()
    decoding: Literal["greedy", "sampled"] = "sampled" if reader.flag() else "greedy"
    law = reader.uint(2)
    bits = 16 if reader.flag() else 8
    any_quiet, all_drafted, any_block = reader.flag(), reader.flag(), reader.flag()
    vocab = _bounded(reader.golomb(12) + 2, limits.max_vocab, "vocab")
    client, seed = reader.sized(), reader.sized()
    temperature, top_p = _read_law(reader, law)
    count = _bounded(reader.golomb(3) + 1, limits.max_rows, "rows")
    sessions, leads = _read_sessions(reader, count, any_block)
    columns = _read_columns(reader, sessions, leads, any_quiet, all_drafted, limits)
    begins = bool((columns.starts == 0).any())
    identity = reader.uint(8 * IDENTITY_BYTES).to_bytes(IDENTITY_BYTES, "big") if begins else b""
    digest = reader.uint(DIGEST_BITS) if columns.builds else 0
    ids = reader.array(columns.ids, bits_needed(vocab))
    rows = _rows(columns, ids)
    _read_claims(reader, rows, _VERIFIERS[code], vocab, bits, limits)
    reader.finish()
    request = Request(
        verifier=_VERIFIERS[code],
        vocab=vocab,
        rows=tuple(rows),
        seed=seed,
        client=client,
        feedback=feedback,
        decoding=decoding,
        temperature=temperature,
        top_p=top_p,
        bits=bits,
        identity=identity,
        digest=digest,
    )
    check_request(request)
    return request


def check_kind(reader: BitReader, kind: int, version: int = VERSION) -> None:
    """Read a message's first byte; :class:`UnsupportedVersion` unless it is ``kind`` as spoken."""
    first = reader.uint(8)
    if first != (kind << 4 | version):
        raise UnsupportedVersion(
            f"first byte 0x{first:02x}; expected 0x{kind << 4 | version:02x} "
            f"(kind {kind:#x}, version {version})"
        )


def _law_form(request: Request) -> int:
    if request.temperature == request.top_p == 1.0:
        return _DEFAULT_LAW
    decimal = all(
        value < 1_000 and round(value * _DECIMALS) / _DECIMALS == value
        for value in (request.temperature, request.top_p)
    )
    return _DECIMAL_LAW if decimal else _FLOAT_LAW


def _write_law(writer: BitWriter, request: Request, form: int) -> None:
    for value in (request.temperature, request.top_p):
        if form == _DECIMAL_LAW:
            writer.golomb(round(value * _DECIMALS), 13)
        elif form == _FLOAT_LAW:
            writer.uint(int.from_bytes(struct.pack(">d", value), "big"), 64)


def _read_law(reader: BitReader, form: int) -> tuple[float, float]:
    if form == _DEFAULT_LAW:
        return 1.0, 1.0
    if form == _DECIMAL_LAW:
        return reader.golomb(13) / _DECIMALS, reader.golomb(13) / _DECIMALS
    if form != _FLOAT_LAW:
        raise UnsupportedVersion(f"sampling law form {form}; known are 0 to {_FLOAT_LAW}")
    temperature, top_p = struct.unpack(">dd", reader.uint(128).to_bytes(16, "big"))
    return temperature, top_p


def _joined(arrays: Sequence[npt.NDArray[np.integer]]) -> IntArray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays]).astype(np.int64)


def _read_sessions(
    reader: BitReader, count: int, any_block: bool
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    sessions = reader.column(count, 3)
    leads = np.ones(count, dtype=bool)
    if any_block:
        again = np.flatnonzero(np.diff(sessions) == 0) + 1
        leads[again] = reader.bits(again.size) == 0
    return sessions, leads


@dataclass(frozen=True)
class _Columns:
    """Everything about the rows but their ids and claims."""

    sessions: IntArray
    leads: npt.NDArray[np.bool_]  # False for the rows of a block after its first
    drafted: npt.NDArray[np.bool_]
    starts: IntArray  # this and the next two: of the rows that lead
    lengths: IntArray
    quiet: IntArray

    @property
    def ids(self) -> int:
        return int(self.lengths.sum()) + int(self.drafted.sum())

    @property
    def builds(self) -> bool:
        """Whether the first row of a session starts past 0."""
        first = np.diff(self.sessions[self.leads], prepend=-1) != 0
        return bool((first & (self.starts > 0)).any())


def _read_columns(
    reader: BitReader,
    sessions: IntArray,
    leads: npt.NDArray[np.bool_],
    any_quiet: bool,
    all_drafted: bool,
    limits: Limits,
) -> _Columns:
    leading = int(leads.sum())
    starts = reader.column(leading, 5)
    lengths = reader.column(leading, 1)
    quiet = reader.column(leading, 5) if any_quiet else np.zeros(leading, dtype=np.int64)
    _bounded(int(starts.max()), limits.max_tokens_per_row, "start")
    _bounded(int(lengths.max()), limits.max_tokens_per_row, "tokens of a row")
    _bounded(int(lengths.sum()), limits.max_tokens, "tokens")
    count = sessions.size
    drafted = np.ones(count, dtype=bool) if all_drafted else reader.bits(count).astype(bool)
    return _Columns(sessions, leads, drafted, starts, lengths, quiet)


def _rows(columns: _Columns, ids: IntArray) -> list[Row]:
    """Rows without claims, from the ids of their tokens and, after those, of their drafts."""
    ends = np.cumsum(columns.lengths)
    tokens = np.split(ids[: int(ends[-1])], ends[:-1])
    drafts = np.full(columns.sessions.size, NO_TOKEN, dtype=np.int64)
    drafts[columns.drafted] = ids[int(ends[-1]) :]
    starts, quiet = columns.starts.tolist(), columns.quiet.tolist()
    rows: list[Row] = []
    lead = 0
    for session, draft, leads in zip(
        columns.sessions.tolist(), drafts.tolist(), columns.leads.tolist(), strict=True
    ):
        if leads:
            rows.append(Row(session, starts[lead], tokens[lead], draft, quiet=quiet[lead]))
            lead += 1
        else:
            rows.append(following_row(rows[-1], draft))  # checked later to follow a draft
    return rows


def _write_claims(writer: BitWriter, request: Request, asking: list[Row], shape: Shape) -> None:
    if shape == Shape.WEIGHT:
        weights = [row.weight for row in asking]
        write_probabilities(writer, np.array(weights, dtype=np.int64))
    if shape == Shape.SUPPORT:
        supports = [row.support.astype(np.int64) for row in asking if row.support is not None]
        write_supports(writer, supports, request.vocab)
    if shape in (Shape.SUPPORT, Shape.PROBS):
        laws = [row.weights for row in asking if row.weights is not None]
        write_dense(writer, laws, request.bits)


def _read_claims(
    reader: BitReader, rows: list[Row], verifier: str, vocab: int, bits: int, limits: Limits
) -> None:
    """Add to each row with a draft what it claims about it."""
    shape = VERIFIER_SHAPES[verifier]
    asking = [index for index, row in enumerate(rows) if row.draft != NO_TOKEN]
    count = len(asking)
    if not asking or shape == Shape.NOTHING:
        return
    if shape == Shape.WEIGHT:
        for index, weight in zip(asking, read_probabilities(reader, count).tolist(), strict=True):
            rows[index] = replace(rows[index], weight=weight)
        return
    supports: list[IntArray | None] = [None] * count
    if shape == Shape.SUPPORT:
        supports = list(read_supports(reader, count, vocab, limits))
    sizes = [vocab if support is None else support.size for support in supports]
    _bounded(sum(sizes), limits.max_weights, "weights")
    for index, support, law in zip(asking, supports, read_dense(reader, sizes, bits), strict=True):
        rows[index] = replace(rows[index], support=support, weights=law)


def _bounded(value: int, limit: int, name: str) -> int:
    if value > limit:
        raise OversizedMessage(f"{name}: {value} announced, at most {limit} are allowed")
    return value
