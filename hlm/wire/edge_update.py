"""Messages by which updates of a policy go up: device to edge server, edge server to cloud.

A device leaves its :class:`EdgeUpdate` with the edge server of its cluster, which answers in two
bytes what came of it. The cloud fetches one :class:`EdgeAggregate` a cluster and round: eq. 7's
mean, and the sums of the rules that learn from sums. Layouts are in ``docs/edge.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hlm.arrays import FloatArray, IntArray
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.edge import EDGE_VERSION
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded, headed, opened
from hlm.wire.rows import Limits

_AGGREGATE_KIND, _UPDATE_KIND, _OUTCOME_KIND = 0x3, 0x4, 0x5
OUTCOMES = (
    "taken",
    "wrong-round",
    "wrong-client",
    "duplicate",
    "unreadable-array",
    "not-finite",
    "out-of-bounds",
    "bad-weight",
    "bad-metric",
)
"""What may come of an update; all but the first are reasons to refuse it."""

_LIMITS = Limits()


def _nothing() -> FloatArray:
    return np.zeros(0)


def _nobody() -> IntArray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class EdgeUpdate:
    """What a device has learned in a round.

    Attributes
    ----------
    client : int
    number : int
        The round, from 1.
    weight : int
        n_k of eq. 7, in [0, 2**64).
    values : float64 [d]
        The policy, any numbers: the server looks at them; empty in a round of sums.
    contribution : int
        Which of the device's contributions the sums are, from 0.
    sums : float64 [m]
        Of a rule that learns from sums, end to end; empty without. The first is a count.
    """

    client: int
    number: int
    weight: int
    values: FloatArray
    contribution: int = 0
    sums: FloatArray = field(default_factory=_nothing)


@dataclass(frozen=True, eq=False)
class EdgeAggregate:
    """What an edge server makes of its devices' updates of a round.

    Attributes
    ----------
    number : int
        The round.
    weight : int
        Sum of n_k.
    mean : float64 [d]
        Eq. 7; zeros where `weight` is 0, empty in a round of sums.
    clients : int64 [n]
        Whose updates are in it, ascending.
    refused : int64 [r]
        Whose were refused, ascending.
    reasons : int64 [r]
        Why: places in `OUTCOMES`.
    contributions : int64 [n]
        Of each client; empty where nobody sent sums, and so are the next two.
    counts : float64 [n]
        The first of each client's sums: a guarantee needs to know who brought how much.
    sums : mapping of contribution to float64 [m]
        Over the clients whose contribution it is.
    """

    number: int
    weight: int
    mean: FloatArray
    clients: IntArray
    refused: IntArray = field(default_factory=_nobody)
    reasons: IntArray = field(default_factory=_nobody)
    contributions: IntArray = field(default_factory=_nobody)
    counts: FloatArray = field(default_factory=_nothing)
    sums: dict[int, FloatArray] = field(default_factory=dict)


def is_update(payload: bytes) -> bool:
    """Whether a message to an edge server is an update, by its first byte."""
    return payload[:1] == bytes([_UPDATE_KIND << 4 | EDGE_VERSION])


def encode_update(update: EdgeUpdate) -> bytes:
    """Bytes of an update; :class:`InvalidField` where a whole number is out of its range."""
    writer = headed(_UPDATE_KIND, EDGE_VERSION)
    for number in (update.client, update.number, update.weight):
        writer.sized(number)
    _write(writer, update.values)
    writer.flag(len(update.sums) > 0)
    if len(update.sums):
        writer.sized(update.contribution)
        _write(writer, update.sums)
    return writer.getvalue()


def decode_update(payload: bytes, limits: Limits = _LIMITS) -> EdgeUpdate:
    """The update that `payload` holds; :class:`WireError` whatever is wrong with the bytes."""
    reader = opened(payload, _UPDATE_KIND, EDGE_VERSION, limits)
    client, number, weight = reader.sized(), reader.sized(), reader.sized()
    values, contribution, sums = _read(reader, limits), 0, _nothing()
    if reader.flag():
        contribution, sums = reader.sized(), _read(reader, limits)
    reader.finish()
    return EdgeUpdate(client, number, weight, values, contribution, sums)


def encode_outcome(outcome: int) -> bytes:
    """Bytes of an edge server's answer, a place in `OUTCOMES`."""
    writer = headed(_OUTCOME_KIND, EDGE_VERSION)
    writer.uint(outcome, 4)
    return writer.getvalue()


def decode_outcome(payload: bytes) -> str:
    """One of `OUTCOMES`; :class:`WireError` whatever is wrong with the bytes."""
    reader = opened(payload, _OUTCOME_KIND, EDGE_VERSION, _LIMITS)
    outcome = reader.uint(4)
    reader.finish()
    return OUTCOMES[_reasons(np.array([outcome]))[0]]


def encode_aggregate(aggregate: EdgeAggregate) -> bytes:
    """Bytes of an aggregate."""
    writer = headed(_AGGREGATE_KIND, EDGE_VERSION)
    writer.sized(aggregate.number)
    writer.sized(aggregate.weight)
    _write(writer, aggregate.mean)
    for clients in (aggregate.clients, aggregate.refused):
        writer.golomb(len(clients), 3)
        writer.column(clients)
    writer.array(aggregate.reasons, 4)
    writer.flag(len(aggregate.sums) > 0)
    if aggregate.sums:
        writer.column(aggregate.contributions)
        _write(writer, aggregate.counts)
        for contribution in np.unique(aggregate.contributions).tolist():
            _write(writer, aggregate.sums[contribution])
    return writer.getvalue()


def decode_aggregate(payload: bytes, limits: Limits = _LIMITS) -> EdgeAggregate:
    """The aggregate that `payload` holds; :class:`WireError` whatever is wrong with the bytes."""
    reader = opened(payload, _AGGREGATE_KIND, EDGE_VERSION, limits)
    number, weight, mean = reader.sized(), reader.sized(), _read(reader, limits)
    clients, refused = _members(reader, limits), _members(reader, limits)
    reasons = _reasons(reader.array(len(refused), 4))
    contributions, counts, sums = _nobody(), _nothing(), {}
    if reader.flag():
        contributions = reader.column(len(clients))
        counts = _read(reader, limits)
        if counts.shape != clients.shape:
            raise InvalidField(f"{len(counts)} counts of {len(clients)} clients")
        sums = {int(k): _read(reader, limits) for k in np.unique(contributions)}
    reader.finish()
    return EdgeAggregate(
        number, weight, mean, clients, refused, reasons, contributions, counts, sums
    )


def _write(writer: BitWriter, values: FloatArray) -> None:
    """Whole numbers as a column, others as their 64 bits."""
    writer.golomb(len(values), 3)
    whole = bool(((values >= 0) & (values < 2**46) & (values == np.floor(values))).all())
    writer.flag(whole)
    if whole:
        writer.column(values.astype(np.int64))
    else:
        writer.array(values.astype(">f8").view(">u4").astype(np.int64), 32)


def _read(reader: BitReader, limits: Limits) -> FloatArray:
    count = bounded(reader.golomb(3), limits.max_weights, "numbers")
    if reader.flag():
        return reader.column(count).astype(np.float64)
    halves = reader.array(2 * count, 32).astype(">u4")
    return np.ascontiguousarray(halves).view(">f8").astype(np.float64)


def _members(reader: BitReader, limits: Limits) -> IntArray:
    clients = reader.column(bounded(reader.golomb(3), limits.max_rows, "clients"))
    if (np.diff(clients) <= 0).any():
        raise InvalidField("clients must increase strictly")
    return clients


def _reasons(codes: IntArray) -> IntArray:
    if len(codes) and int(codes.max()) >= len(OUTCOMES):
        raise InvalidField(f"outcome {int(codes.max())}; known are 0 to {len(OUTCOMES) - 1}")
    return codes
