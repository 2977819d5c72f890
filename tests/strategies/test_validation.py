from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.layout import Layout
from strategies.validation import (
    REASONS,
    Refusal,
    ReplySchema,
    Update,
    validate_replies,
    validate_reply,
)

LAYOUT = Layout(("policy",), ((2,),), ("<f8",))
SCHEMA = ReplySchema(
    layout=LAYOUT,
    low=np.zeros(2),
    high=np.ones(2),
    server_round=3,
    clients={11: 0, 12: 1, 13: -1},
    max_weight=1000,
    require_echo=True,
)
GOOD: dict[str, object] = {"num-examples": 5, "client": 0, "round": 3, "loss": 0.25}


def _reply(
    node: int = 11,
    policy: object = (0.25, 0.75),
    metrics: dict[str, object] | None = None,
    content: RecordDict | None = None,
) -> Message:
    if content is None:
        array = policy if isinstance(policy, Array) else Array(np.asarray(policy))
        content = RecordDict(
            {
                "arrays": ArrayRecord({"policy": array}),
                "metrics": MetricRecord(GOOD if metrics is None else metrics),
            }
        )
    asked = Message(RecordDict(), dst_node_id=node, message_type="train")
    return Message(content, reply_to=asked)


def _without(key: str) -> dict[str, object]:
    return {name: value for name, value in GOOD.items() if name != key}


def test_a_good_reply_passes() -> None:
    update = validate_reply(_reply(), SCHEMA)
    assert isinstance(update, Update)
    assert (update.node_id, update.client, update.weight) == (11, 0, 5.0)
    np.testing.assert_array_equal(update.values, [0.25, 0.75])
    assert update.values.dtype == np.float64
    single = validate_reply(_reply(policy=np.array([0.25, 0.75], dtype=np.float32)), SCHEMA)
    assert isinstance(single, Update)


def test_extra_config_records_are_fine() -> None:
    message = _reply()
    message.content["notes"] = ConfigRecord({"text": "hello"})
    assert isinstance(validate_reply(message, SCHEMA), Update)


BAD: list[tuple[str, dict[str, object]]] = [
    ("not-asked", {"node": 99}),
    ("missing-record", {"content": RecordDict()}),
    ("missing-record", {"content": RecordDict({"metrics": MetricRecord(GOOD)})}),
    (
        "missing-key",
        {
            "content": RecordDict(
                {
                    "arrays": ArrayRecord({"other": Array(np.zeros(2))}),
                    "metrics": MetricRecord(GOOD),
                }
            )
        },
    ),
    ("missing-key", {"metrics": _without("num-examples")}),
    ("missing-key", {"metrics": _without("round")}),
    ("missing-key", {"metrics": _without("client")}),
    ("unreadable-array", {"policy": (0.5,)}),
    ("unreadable-array", {"policy": ((0.5, 0.5),)}),
    ("unreadable-array", {"policy": np.array([0, 1])}),
    ("unreadable-array", {"policy": np.array([0.5 + 0j, 0.5])}),
    ("unreadable-array", {"policy": Array("float64", (2,), "numpy.ndarray", b"rubbish")}),
    ("unreadable-array", {"policy": Array("float64", (2,), "numpy.ndarray", b"")}),
    ("not-finite", {"policy": (np.nan, 0.5)}),
    ("not-finite", {"policy": (np.inf, 0.5)}),
    ("not-finite", {"metrics": {**GOOD, "loss": float("nan")}}),
    ("not-finite", {"metrics": {**GOOD, "num-examples": float("inf")}}),
    ("not-finite", {"metrics": {**GOOD, "curve": [0.0, float("nan")]}}),
    ("out-of-bounds", {"policy": (1e30, 0.5)}),
    ("out-of-bounds", {"policy": (0.5, -1e-9)}),
    ("bad-metric", {"metrics": {**GOOD, "loss": 1e30}}),
    ("bad-metric", {"metrics": {**GOOD, "num-examples": [5]}}),
    ("bad-weight", {"metrics": {**GOOD, "num-examples": -1}}),
    ("bad-weight", {"metrics": {**GOOD, "num-examples": 1001}}),
    ("wrong-round", {"metrics": {**GOOD, "round": 2}}),
    ("wrong-client", {"metrics": {**GOOD, "client": 1}}),
    ("wrong-client", {"node": 13, "metrics": {**GOOD, "client": -4}}),
    ("wrong-client", {"node": 13, "metrics": {**GOOD, "client": 0.5}}),
]


@pytest.mark.parametrize(("reason", "options"), BAD)
def test_a_bad_reply_is_refused_and_named(reason: str, options: dict[str, object]) -> None:
    refusal = validate_reply(_reply(**options), SCHEMA)  # type: ignore[arg-type]
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert refusal.detail
    assert refusal.node_id == options.get("node", 11)
    assert refusal.client == SCHEMA.clients.get(refusal.node_id, -1)


def test_every_reason_is_tested() -> None:
    assert {reason for reason, _ in BAD} | {"duplicate"} == set(REASONS)


def test_duplicates_keep_the_first_and_the_order_is_by_client() -> None:
    first = _reply(12, (0.1, 0.1), {**GOOD, "client": 1})
    again = _reply(12, (0.9, 0.9), {**GOOD, "client": 1})
    other = _reply(11, (0.2, 0.2))
    impostor = _reply(13, (0.8, 0.8), {**GOOD, "client": 0})
    updates, refusals = validate_replies([first, again, other, impostor], SCHEMA)
    assert [(update.client, update.values[0]) for update in updates] == [(0, 0.2), (1, 0.1)]
    assert [(entry.reason, entry.node_id) for entry in refusals] == [
        ("duplicate", 12),
        ("duplicate", 13),
    ]


def test_clients_of_other_apps_need_no_echo() -> None:
    schema = ReplySchema(LAYOUT, np.zeros(2), np.ones(2), 3, {11: -1}, require_echo=False)
    update = validate_reply(_reply(metrics={"num-examples": 2}), schema)
    assert isinstance(update, Update)
    assert update.client == -1
    for wrong in ({"round": 2}, {"client": -3}):
        found = validate_reply(_reply(metrics={"num-examples": 2, **wrong}), schema)
        assert isinstance(found, Refusal)


def test_further_arrays_are_bounded() -> None:
    schema = ReplySchema(
        LAYOUT, np.zeros(2), np.ones(2), 3, {11: 0}, extras={"control_delta": 10.0}
    )

    def outcome(delta: object) -> Update | Refusal:
        message = _reply()
        message.content.array_records["arrays"]["control_delta"] = Array(np.asarray(delta))
        return validate_reply(message, schema)

    assert isinstance(outcome([1.0, -10.0]), Update)
    for delta in ([11.0, 0.0], [np.nan, 0.0], [1.0]):
        assert isinstance(outcome(delta), Refusal)
    assert isinstance(validate_reply(_reply(), schema), Refusal)


def test_a_header_that_promises_terabytes_is_refused_without_allocating() -> None:
    body = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"
    body += b" " * (117 - len(body)) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + b"\0" * 16
    refusal = validate_reply(_reply(policy=Array("f", (2,), "n", data)), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert "1099511627776" in refusal.detail


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_array_bytes_crash_the_check(data: st.DataObject) -> None:
    good = bytearray(Array(np.array([0.25, 0.75])).data)
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for raw in (bytes(good), bytes(good[:cut])):
        outcome = validate_reply(_reply(policy=Array("f", (2,), "n", raw)), SCHEMA)
        if isinstance(outcome, Update):
            assert ((outcome.values >= 0) & (outcome.values <= 1)).all()
