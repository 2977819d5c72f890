"""Which replies may be averaged: everything else is refused, counted by reason and named.

A single bad reply must not be able to move, break or stall a round, so nothing a client says is
used before it has been checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from hlm.arrays import FloatArray
from strategies.layout import Layout, UnreadableArray, decode

Bounds = tuple[float | FloatArray, float | FloatArray]
REASONS = (
    "not-asked",
    "missing-record",
    "missing-key",
    "unreadable-array",
    "not-finite",
    "out-of-bounds",
    "bad-metric",
    "bad-weight",
    "wrong-round",
    "wrong-client",
    "duplicate",
)
"""Every reason a `Refusal` can have."""


@dataclass(frozen=True)
class Refusal:
    """A reply that was not averaged.

    Attributes
    ----------
    reason : str
        One of `REASONS`.
    node_id : int
        Flower's id of the node that sent it.
    client : int
        Client index, -1 where unknown.
    detail : str
        What was found and what is allowed.
    """

    reason: str
    node_id: int
    client: int
    detail: str = ""


@dataclass(frozen=True)
class Update:
    """A reply that passed.

    It keeps the reply's bytes and no copy of what is in them: of a large model only the replies
    that are being added up exist as float64.

    Attributes
    ----------
    node_id, client : int
    weight : float
        n_k of eq. 7, finite and >= 0.
    metrics : mapping of str to number or list of numbers
    record : ArrayRecord or None
        The arrays as they came; None where none were expected.
    layout : Layout or None
        How to read them.
    """

    node_id: int
    client: int
    weight: float
    metrics: Mapping[str, int | float | list[int] | list[float]]
    record: ArrayRecord | None = None
    layout: Layout | None = None

    @property
    def name(self) -> int:
        """The client index, or the node id where that is unknown."""
        return self.client if self.client >= 0 else self.node_id

    @property
    def values(self) -> FloatArray:
        """The client's policy, float64 [d], read anew at every look."""
        if self.record is None or self.layout is None:
            return np.zeros(0)
        return self.layout.flatten(self.record)

    def extra(self, key: str) -> FloatArray:
        """A further array of the local method (SCAFFOLD's control difference), float64 [d]."""
        if self.record is None or self.layout is None:
            raise KeyError(key)
        return decode(self.record[key], (self.layout.size,)).astype(np.float64)


@dataclass(frozen=True)
class ReplyLimits:
    """What a reply may hold, in any round.

    Attributes
    ----------
    bounds : (low, high)
        Allowed range of every parameter, scalars or float64 [d]; by default any finite number.
        Replies outside are refused, results clamped.
    max_weight : float
        Largest believable n_k, > 0.
    require_echo : bool
        Replies must carry ``round`` and ``client``; see `ReplySchema`.
    metric_ranges : mapping of metric name to (low, high)
        Metrics that each reply of a training leg must have in this range.
    """

    bounds: Bounds = (-np.inf, np.inf)
    max_weight: float = 1e9
    require_echo: bool = False
    metric_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.max_weight > 0:
            raise ValueError(f"max_weight: {self.max_weight}; allowed: > 0")


@dataclass(frozen=True)
class ReplySchema:
    """What a reply must look like in one round.

    Attributes
    ----------
    layout : Layout or None
        Names, shapes and dtypes of the policy's arrays; a float64 may come as float32. None
        where no arrays are expected (evaluation).
    low, high : float64 [d]
        Bounds of every parameter, inclusive.
    server_round : int
        The reply's metric ``round`` must equal it.
    clients : mapping of node id to client index
        Who was asked; -1 where the index is not known.
    extras : mapping of array key to largest absolute value allowed
    metric_ranges : mapping of metric name to (low, high)
        Metrics that must be present as one finite number in this range.
    weight_key : str
    max_weight : float
        A weight above it is refused as absurd.
    max_metric : float
        Largest absolute value of any metric.
    require_echo : bool
        False accepts replies without ``round`` and ``client`` (clients of other Flower apps),
        at the price of not noticing a replayed reply; where they are present they must be right.
    """

    layout: Layout | None
    low: FloatArray
    high: FloatArray
    server_round: int
    clients: Mapping[int, int]
    extras: Mapping[str, float] = field(default_factory=dict)
    metric_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weight_key: str = "num-examples"
    max_weight: float = 1e9
    max_metric: float = 1e15
    require_echo: bool = False


class _Bad(Exception):
    """Carries (reason, detail) to the one place where a refusal is made."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def validate_reply(message: Message, schema: ReplySchema) -> Update | Refusal:
    """Check one reply that carries content.

    Duplicates need the other replies of the round: see `validate_replies`.
    """
    node = message.metadata.src_node_id
    client = schema.clients.get(node, -1)
    try:
        if node not in schema.clients:
            raise _Bad("not-asked", "the node was not asked in this round")
        metrics = _metrics(message, schema)
        client = _client(metrics, schema, node)
        weight = _weight(metrics, schema)
        record = _arrays(message, schema)
    except _Bad as bad:
        return Refusal(bad.reason, node, client, bad.detail)
    return Update(node, client, weight, metrics, record, schema.layout)


def validate_replies(
    messages: Iterable[Message], schema: ReplySchema
) -> tuple[list[Update], list[Refusal]]:
    """Check all replies of a round and drop duplicates.

    Of several replies by one node, or by several nodes that claim the same client, the first
    counts. Updates come back sorted by client index, then node id: floating-point sums depend on
    the order, and the order in which replies arrive does not repeat.
    """
    updates: list[Update] = []
    refusals: list[Refusal] = []
    nodes: set[int] = set()
    clients: set[int] = set()
    for message in messages:
        outcome = validate_reply(message, schema)
        if isinstance(outcome, Refusal):
            refusals.append(outcome)
        elif outcome.node_id in nodes or (outcome.client >= 0 and outcome.client in clients):
            refusals.append(
                Refusal("duplicate", outcome.node_id, outcome.client, "replied already this round")
            )
        else:
            updates.append(outcome)
            nodes.add(outcome.node_id)
            clients.add(outcome.client)
    return sorted(updates, key=lambda update: (update.client, update.node_id)), refusals


def _metrics(
    message: Message, schema: ReplySchema
) -> dict[str, int | float | list[int] | list[float]]:
    records = message.content.metric_records
    if len(records) != 1:
        raise _Bad("missing-record", f"{len(records)} MetricRecords; allowed: 1")
    record: MetricRecord = next(iter(records.values()))
    metrics = dict(record)
    for name, value in metrics.items():
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if not math.isfinite(number):
                raise _Bad("not-finite", f"metric {name!r}: {number}; allowed: finite")
            if abs(number) > schema.max_metric:
                raise _Bad(
                    "bad-metric", f"metric {name!r}: {number}; allowed: +-{schema.max_metric:g}"
                )
    for name, (low, high) in schema.metric_ranges.items():
        number = _number(metrics, name)
        if not low <= number <= high:
            raise _Bad("bad-metric", f"metric {name!r}: {number}; allowed: [{low:g}, {high:g}]")
    echoes = schema.require_echo or "round" in metrics
    if echoes and _number(metrics, "round") != schema.server_round:
        raise _Bad("wrong-round", f"round {metrics['round']}; allowed: {schema.server_round}")
    return metrics


def _number(metrics: Mapping[str, object], name: str) -> float:
    if name not in metrics:
        raise _Bad("missing-key", f"metric {name!r} is missing")
    value = metrics[name]
    if not isinstance(value, int | float):
        raise _Bad("bad-metric", f"metric {name!r}: a list; allowed: one number")
    return float(value)


def _client(metrics: Mapping[str, object], schema: ReplySchema, node: int) -> int:
    known = schema.clients[node]
    if not schema.require_echo and "client" not in metrics:
        return known
    claimed = _number(metrics, "client")
    if known >= 0 and claimed != known:
        raise _Bad("wrong-client", f"client {claimed:g}; allowed: {known}")
    if claimed < 0 or claimed != int(claimed):
        raise _Bad("wrong-client", f"client {claimed:g}; allowed: an index >= 0")
    return int(claimed)


def _weight(metrics: Mapping[str, object], schema: ReplySchema) -> float:
    weight = _number(metrics, schema.weight_key)
    if not 0 <= weight <= schema.max_weight:
        raise _Bad(
            "bad-weight", f"{schema.weight_key} {weight:g}; allowed: [0, {schema.max_weight:g}]"
        )
    return weight


def _arrays(message: Message, schema: ReplySchema) -> ArrayRecord | None:
    """The reply's arrays, each of them looked at once."""
    if schema.layout is None:
        return None
    records = message.content.array_records
    if len(records) != 1:
        raise _Bad("missing-record", f"{len(records)} ArrayRecords; allowed: 1")
    record = next(iter(records.values()))
    size = schema.layout.size
    for key in (*schema.layout.names, *schema.extras):
        if key not in record:
            raise _Bad("missing-key", f"array {key!r} is missing")
    try:
        values = schema.layout.flatten(record)
        extras = {key: decode(record[key], (size,)).astype(np.float64) for key in schema.extras}
    except UnreadableArray as error:
        raise _Bad("unreadable-array", str(error)) from error
    if not np.isfinite(values).all():
        raise _Bad("not-finite", "the policy has a NaN or infinite entry")
    outside = (values < schema.low) | (values > schema.high)
    if outside.any():
        place = int(np.argmax(outside))
        raise _Bad(
            "out-of-bounds",
            f"entry {place}: {values[place]:g}; "
            f"allowed: [{schema.low[place]:g}, {schema.high[place]:g}]",
        )
    for key, vector in extras.items():
        bound = schema.extras[key]
        if not np.isfinite(vector).all():
            raise _Bad("not-finite", f"array {key!r} has a NaN or infinite entry")
        if np.abs(vector).max(initial=0.0) > bound:
            raise _Bad("out-of-bounds", f"array {key!r}; allowed: +-{bound:g}")
    return record
