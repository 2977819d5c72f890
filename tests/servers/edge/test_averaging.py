from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.wire import WireError
from hlm.wire.edge_update import (
    OUTCOMES,
    EdgeUpdate,
    decode_aggregate,
    decode_outcome,
    decode_update,
    encode_aggregate,
    encode_update,
)
from servers.edge.averaging import Averaging, UpdateLimits
from servers.edge.server import EdgeServer
from strategies.aggregation import weighted_mean

LOW, HIGH = np.array([0.0, -5.0]), np.array([1.0, 5.0])


def limits(**changes) -> UpdateLimits:
    return UpdateLimits(**{"low": LOW, "high": HIGH, "most": 30, **changes})


def update(client=0, number=1, weight=3, values=(0.5, 1.0), **rest) -> EdgeUpdate:
    return EdgeUpdate(client, number, weight, np.array(values, dtype=np.float64), **rest)


def server(**changes) -> EdgeServer:
    edge = EdgeServer(0, np.eye(4), members=range(5), averaging=Averaging(limits(**changes)))
    edge.open(1, False)
    return edge


def leave(edge: EdgeServer, one: EdgeUpdate) -> str:
    return decode_outcome(edge.handle(encode_update(one)))


def test_the_mean_is_eq_7_whatever_the_order():
    edge, rng = server(), np.random.default_rng(3)
    weights, values = [4, 0, 7, 1], rng.uniform(0, 1, (4, 2))
    for client in (2, 0, 3, 1):
        one = update(client, weight=weights[client], values=values[client])
        assert leave(edge, one) == "taken"
    found = decode_aggregate(edge.collect(1))
    assert found.weight == 12 and found.clients.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.mean, weighted_mean(values, np.array(weights, float)), 1e-14)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (update(values=(np.nan, 0.0)), "not-finite"),
        (update(values=(0.5, np.inf)), "not-finite"),
        (update(values=(1.5, 0.0)), "out-of-bounds"),
        (update(values=(0.5,)), "unreadable-array"),
        (update(weight=31), "bad-weight"),
        (update(number=2), "wrong-round"),
        (update(sums=np.ones(2)), "bad-metric"),
    ],
)
def test_what_must_not_be_averaged_is_refused_and_counted_at_the_edge(bad, reason):
    edge = server()
    assert leave(edge, bad) == reason
    assert leave(edge, update(1)) == "taken"
    found = decode_aggregate(edge.collect(1))
    assert found.refused.tolist() == [0] and OUTCOMES[found.reasons[0]] == reason
    assert found.clients.tolist() == [1] and found.mean.tolist() == [0.5, 1.0]


def test_strangers_second_updates_and_other_rounds_change_nothing():
    edge = server()
    assert leave(edge, update(7)) == "wrong-client"
    assert leave(edge, update(1)) == "taken"
    assert leave(edge, update(1, values=(0.1, 0.1))) == "duplicate"
    assert decode_aggregate(edge.collect(1)).mean.tolist() == [0.5, 1.0]
    assert decode_aggregate(edge.collect(2)).clients.tolist() == []
    edge.open(2, False)
    assert decode_aggregate(edge.collect(2)).weight == 0
    # One that was started anew has no round open.
    restarted = EdgeServer(0, np.eye(4), averaging=Averaging(limits()))
    assert leave(restarted, update()) == "wrong-round"


def test_a_device_leaves_no_update_of_another_one():
    edge = server()
    mine, forged = encode_update(update(0)), encode_update(update(1, values=(1.0, 5.0)))
    assert decode_outcome(edge.handle(mine, "phone")) == "taken"
    assert decode_outcome(edge.handle(encode_update(update(1)), "car")) == "taken"
    edge.open(2, False)
    assert decode_outcome(edge.handle(forged, "phone")) == "wrong-client"
    assert edge.collect(2)


def test_sums_add_up_by_contribution_and_impossible_ones_are_refused():
    edge = server(sums=3, check=lambda sums: "too many" if sums[0] > 10 else "")
    edge.open(1, True)
    nothing = np.zeros(0)
    for client, contribution, sums in ((0, 0, [2, 1, 0.5]), (1, 1, [3, 1, 0]), (2, 0, [4, 0, 1])):
        one = update(client, values=nothing, contribution=contribution, sums=np.array(sums))
        assert leave(edge, one) == "taken"
    assert leave(edge, update(3, values=nothing, sums=np.array([11.0, 0, 0]))) == "bad-metric"
    assert leave(edge, update(4, values=nothing, sums=np.ones(2))) == "bad-metric"
    found = decode_aggregate(edge.collect(1))
    assert found.counts.tolist() == [2, 3, 4] and found.contributions.tolist() == [0, 1, 0]
    assert {k: v.tolist() for k, v in found.sums.items()} == {0: [6, 1, 1.5], 1: [3, 1, 0]}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(), max_size=5), st.lists(st.floats(), max_size=3), st.binary(max_size=40))
def test_messages_come_back_bit_for_bit_and_bytes_are_read_or_refused(values, sums, noise):
    sent = update(3, 9, 2**40, values, contribution=4 if sums else 0, sums=np.array(sums))
    back = decode_update(encode_update(sent))
    assert vars(back).keys() == vars(sent).keys()
    for name, value in vars(sent).items():
        np.testing.assert_array_equal(getattr(back, name), value)
    for payload in (noise, encode_update(sent)[:-1], encode_update(sent)[:1] + noise):
        for decode in (decode_update, decode_aggregate, decode_outcome):
            try:
                decode(payload)
            except WireError:
                continue


def test_an_aggregate_comes_back():
    rng, averaging = np.random.default_rng(0), Averaging(limits(sums=2))
    averaging.open(4, True)
    for client in range(3):
        one = update(client, 4, values=(), contribution=client % 2, sums=rng.normal(size=2))
        assert averaging.take(one) == 0
    made = averaging.collect(4)
    back = decode_aggregate(encode_aggregate(made))
    for name in ("number", "weight", "mean", "clients", "contributions", "counts"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert {k: v.tolist() for k, v in back.sums.items()} == {
        k: v.tolist() for k, v in made.sums.items()
    }
