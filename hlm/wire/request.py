"""Requests to bytes and back; ``docs/wire.md`` shows the layout."""

import struct
from typing import Literal

import numpy as np

from hlm.arrays import BoolArray, IntArray
from hlm.verifiers import VERIFIERS, Shape
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed, extremes
from hlm.wire.errors import UnsupportedVersion
from hlm.wire.heads import bounded, headed, opened
from hlm.wire.messages import Request
from hlm.wire.prefix import DIGEST_BITS, IDENTITY_BYTES
from hlm.wire.rows import NO_TOKEN, Limits, Rows, firsts, with_blocks
from hlm.wire.weights import (
    read_dense,
    read_probabilities,
    read_supports,
    write_dense,
    write_probabilities,
    write_supports,
)

VERSION = 2
REQUEST_KIND = 0xA
"""High half of a request's first byte; the low half is :data:`VERSION`."""

_VERIFIERS = tuple(VERIFIERS)
_DEFAULT, _DECIMAL, _FLOAT = range(3)
_DECIMALS = 10_000
_DEFAULT_LIMITS = Limits()


def encode_request(request: Request) -> bytes:
    """Bytes of ``request``.

    Raises
    ------
    InvalidField
        If a field is out of range, or a row's claim has not the verifier's shape.
    """
    rows = request.rows
    any_block, drafts = bool(np.count_nonzero(rows.block)), rows.drafts[rows.drafted]
    leads: BoolArray | slice = ~rows.block if any_block else slice(None)
    all_drafted = len(drafts) == len(rows)
    own = rows.tokens[np.repeat(~rows.block, rows.lengths)] if any_block else rows.tokens
    form = _sampling_form(request)
    any_quiet = bool(np.count_nonzero(rows.quiet[leads]))

    writer = headed(REQUEST_KIND, VERSION)
    writer.uint(_VERIFIERS.index(request.verifier), 4)
    writer.flag(request.feedback)
    writer.flag(request.decoding == "sampled")
    writer.uint(form, 2)
    writer.flag(request.bits == 16)
    writer.flag(any_quiet)
    writer.flag(all_drafted)
    writer.flag(any_block)
    writer.golomb(request.vocab - 2, 12)
    writer.sized(request.client)
    writer.sized(request.seed)
    _write_sampling(writer, request, form)
    writer.golomb(len(rows) - 1, 3)
    writer.column(rows.sessions, 3)
    if any_block:
        writer.bits(rows.block[~rows.first])
    writer.column(rows.starts[leads], 5)
    writer.column(rows.lengths[leads], 1)
    if any_quiet:
        writer.column(rows.quiet[leads], 5)
    if not all_drafted:
        writer.bits(rows.drafted)
    if request.identity:
        writer.uint(int.from_bytes(request.identity, "big"), 8 * IDENTITY_BYTES)
    if np.count_nonzero(rows.builds):
        writer.uint(request.digest, DIGEST_BITS)
    writer.array(np.concatenate([own, drafts]), bits_needed(request.vocab))
    if drafts.size:
        _write_claims(writer, request)
    return writer.getvalue()


def decode_request(payload: bytes, limits: Limits = _DEFAULT_LIMITS) -> Request:
    """The request that ``payload`` holds.

    Raises
    ------
    WireError
        :class:`TruncatedMessage`, :class:`TrailingData`, :class:`OversizedMessage`,
        :class:`UnsupportedVersion` or :class:`InvalidField`; nothing else, whatever the bytes.
    """
    reader = opened(payload, REQUEST_KIND, VERSION, limits)
    code = reader.uint(4)
    if code >= len(_VERIFIERS):
        raise UnsupportedVersion(f"verifier code {code}; known are 0 to {len(_VERIFIERS) - 1}")
    feedback = reader.flag()
    decoding: Literal["greedy", "sampled"] = "sampled" if reader.flag() else "greedy"
    form = reader.uint(2)
    bits = 16 if reader.flag() else 8
    any_quiet, all_drafted, any_block = reader.flag(), reader.flag(), reader.flag()
    vocab = bounded(reader.golomb(12) + 2, limits.max_vocab, "vocab")
    client, seed = reader.sized(), reader.sized()
    temperature, top_p = _read_sampling(reader, form)
    count = bounded(reader.golomb(3) + 1, limits.max_rows, "rows")
    sessions, leads = _read_sessions(reader, count, any_block)
    leading = sessions[leads] if any_block else sessions
    starts, lengths = reader.column(len(leading), 5), reader.column(len(leading), 1)
    quiet = reader.column(len(leading), 5) if any_quiet else np.zeros(len(leading), np.int64)
    bounded(extremes(starts)[1], limits.max_tokens_per_row, "start")
    bounded(extremes(lengths)[1], limits.max_tokens_per_row, "tokens of a row")
    own = bounded(int(lengths.sum()), limits.max_tokens, "tokens")
    drafted = np.ones(count, np.bool_) if all_drafted else reader.bits(count) > 0
    begins = np.count_nonzero(starts) < len(starts)
    identity = reader.uint(8 * IDENTITY_BYTES).to_bytes(IDENTITY_BYTES, "big") if begins else b""
    builds = np.count_nonzero(starts[firsts(leading)])
    digest = reader.uint(DIGEST_BITS) if builds else 0
    ids = reader.array(own + int(np.count_nonzero(drafted)), bits_needed(vocab))
    tokens, drafts = ids[:own], ids[own:]
    if not all_drafted:
        drafts = np.full(count, NO_TOKEN)
        drafts[drafted] = ids[own:]
    claims = _read_claims(reader, drafted, VERIFIERS[_VERIFIERS[code]].claim, vocab, bits, limits)
    reader.finish()
    if any_block:
        leaders = Rows(leading, starts, lengths, tokens, quiet=quiet)
        rows = with_blocks(leaders, leads, drafts, *claims)
    else:
        rows = Rows(sessions, starts, lengths, tokens, drafts, quiet, ~leads, *claims)
    return Request(
        verifier=_VERIFIERS[code],
        vocab=vocab,
        rows=rows,
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


def _sampling_form(request: Request) -> int:
    if request.temperature == request.top_p == 1.0:
        return _DEFAULT
    decimal = all(
        value < 1_000 and round(value * _DECIMALS) / _DECIMALS == value
        for value in (request.temperature, request.top_p)
    )
    return _DECIMAL if decimal else _FLOAT


def _write_sampling(writer: BitWriter, request: Request, form: int) -> None:
    for value in (request.temperature, request.top_p):
        if form == _DECIMAL:
            writer.golomb(round(value * _DECIMALS), 13)
        elif form == _FLOAT:
            writer.uint(int.from_bytes(struct.pack(">d", value), "big"), 64)


def _read_sampling(reader: BitReader, form: int) -> tuple[float, float]:
    if form == _DEFAULT:
        return 1.0, 1.0
    if form == _DECIMAL:
        return reader.golomb(13) / _DECIMALS, reader.golomb(13) / _DECIMALS
    if form != _FLOAT:
        raise UnsupportedVersion(f"form of temperature and top_p {form}; known are 0 to {_FLOAT}")
    temperature, top_p = struct.unpack(">dd", reader.uint(128).to_bytes(16, "big"))
    return temperature, top_p


def _read_sessions(reader: BitReader, count: int, any_block: bool) -> tuple[IntArray, BoolArray]:
    sessions = reader.column(count, 3)
    leads = np.ones(count, np.bool_)
    if any_block:
        again = np.flatnonzero(~firsts(sessions))
        leads[again] = reader.bits(again.size) == 0
    return sessions, leads


def _write_claims(writer: BitWriter, request: Request) -> None:
    shape, weights = request.shape, request.rows.weights
    counts = request.rows.counts[request.rows.drafted]
    if shape == Shape.WEIGHT:
        write_probabilities(writer, weights)
    if shape == Shape.SUPPORT:
        write_supports(writer, request.rows.support, counts, request.vocab)
    if shape in (Shape.SUPPORT, Shape.PROBS):
        write_dense(writer, weights, counts, request.bits)


def _read_claims(
    reader: BitReader, drafted: BoolArray, shape: Shape, vocab: int, bits: int, limits: Limits
) -> tuple[IntArray, IntArray, IntArray]:
    """Counts of all rows, weights and support of what is claimed about their drafts."""
    asking, nothing = int(np.count_nonzero(drafted)), np.zeros(0, np.int64)
    counts, support = np.zeros(len(drafted), np.int64), nothing
    if not asking or shape == Shape.NOTHING:
        return counts, nothing, nothing
    if shape == Shape.WEIGHT:
        counts[drafted] = 1
        return counts, read_probabilities(reader, asking), nothing
    if shape == Shape.SUPPORT:
        support, counts[drafted] = read_supports(reader, asking, vocab, limits)
    else:
        counts[drafted] = vocab
    bounded(int(counts.sum()), limits.max_weights, "weights")
    return counts, read_dense(reader, counts[drafted], bits), support
