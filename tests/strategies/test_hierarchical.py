from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from strategies import (
    AssignedClusters,
    Hierarchical,
    NotEnoughNodes,
    RoundFailed,
    RoundRecord,
    build_strategy,
    state_from_bytes,
    state_to_bytes,
)
from tests.strategies.fake_grid import (
    FakeGrid,
    answer,
    fail,
    initial,
    received,
    sends,
    settings,
)

CLUSTERS = AssignedClusters({10: 0, 11: 1, 12: 2}, [0, 0, 1])


def _three(*replies: tuple[float, float]) -> FakeGrid:
    return FakeGrid(
        {
            10 + client: sends([value], client=client, weight=weight)
            for client, (value, weight) in enumerate(replies)
        }
    )


def _train_messages(grid: FakeGrid, server_round: int) -> list[Message]:
    return [
        message
        for message in grid.sent
        if message.metadata.message_type == "train" and settings(message)["round"] == server_round
    ]


def test_a_round_by_hand() -> None:
    # eq. 7: (3*0.2 + 1*0.6)/4 = 0.3 and 0.9; eq. 8: 0.6.
    strategy = Hierarchical(CLUSTERS)
    result = strategy.start(_three((0.2, 3), (0.6, 1), (0.9, 7)), initial(0.5), num_rounds=1)
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.6], rtol=1e-15)
    np.testing.assert_allclose(strategy.cluster_policies[:, 0], [0.3, 0.9], rtol=1e-15)
    record = strategy.history[0]
    assert record.heard == [True, True]
    assert record.weights == {0: 3.0, 1: 1.0, 2: 7.0}
    assert record.clients == {0: 0, 1: 0, 2: 1}
    assert record.sums["num-examples"] == 11


def test_a_cluster_without_tokens_keeps_its_threshold() -> None:
    strategy = Hierarchical(CLUSTERS)
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    strategy.start(grid, initial(0.5), num_rounds=1)
    grid.clients |= _three((0.2, 3), (0.6, 1), (0.1, 0)).clients
    result = strategy.start(grid, initial(0.5), num_rounds=2)
    np.testing.assert_allclose(strategy.cluster_policies[:, 0], [0.3, 0.9])
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.6])
    assert strategy.history[1].heard == [True, False]


def test_no_tokens_anywhere_change_nothing() -> None:
    strategy = Hierarchical(CLUSTERS)
    result = strategy.start(_three((0.2, 0), (0.6, 0), (0.9, 0)), initial(0.5), num_rounds=2)
    assert result.arrays["policy"].numpy() == 0.5
    assert strategy.history[-1].heard == [False, False]


def test_a_cluster_that_never_reported_does_not_count() -> None:
    strategy = Hierarchical(AssignedClusters({10: 0, 11: 1, 12: 2}, [0, 0, 1], 5))
    result = strategy.start(_three((0.2, 3), (0.6, 1), (0.9, 7)), initial(0.0), num_rounds=1)
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.6])


def test_one_cluster_is_flat_fedavg() -> None:
    strategy = Hierarchical()
    result = strategy.start(_three((0.2, 3), (0.6, 1), (0.9, 7)), initial(0.5), num_rounds=1)
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [(0.6 + 0.6 + 6.3) / 11])


def test_mean_over_mean_weighted_by_examples_is_flat_too() -> None:
    strategy = Hierarchical(CLUSTERS, cloud_rule="weighted-mean", cloud_weights="examples")
    result = strategy.start(_three((0.2, 3), (0.6, 1), (0.9, 7)), initial(0.5), num_rounds=1)
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [(0.6 + 0.6 + 6.3) / 11])


def test_edge_and_cloud_rules_compose() -> None:
    clients = {
        node: sends([value], client=node) for node, value in enumerate([0.1, 0.2, 0.9, 0.5, 0.7])
    }
    strategy = Hierarchical(
        AssignedClusters({node: node for node in range(5)}, [0, 0, 0, 1, 2]),
        edge_rule="fedmedian",
        cloud_rule="median",
    )
    result = strategy.start(FakeGrid(clients), initial(0.5), num_rounds=1)  # type: ignore[arg-type]
    np.testing.assert_allclose(strategy.cluster_policies[:, 0], [0.2, 0.5, 0.7])
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.5])


def test_every_client_gets_a_message_of_its_own() -> None:
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    strategy = Hierarchical(CLUSTERS, personalisation="cluster")
    strategy.start(grid, initial(0.5), 2, train_config=ConfigRecord({"learning-rate": 0.1}))
    for message, start in zip(_train_messages(grid, 2), [0.3, 0.3, 0.9], strict=True):
        np.testing.assert_allclose(received(message), [start])
        assert settings(message)["learning-rate"] == 0.1
        assert settings(message)["personalisation"] == "cluster"
    assert [settings(m)["cluster"] for m in _train_messages(grid, 2)] == [0, 0, 1]
    assert len({id(message.content) for message in grid.sent}) == len(grid.sent)


@pytest.mark.parametrize("personalisation", ["local", "shrunk"])
def test_local_and_shrunk_also_send_the_cluster(personalisation: Any) -> None:
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    strategy = Hierarchical(CLUSTERS, personalisation=personalisation, shrink_weight=40)
    strategy.start(grid, initial(0.5), num_rounds=2)
    message = _train_messages(grid, 2)[2]
    np.testing.assert_allclose(received(message, "cluster"), [0.9])
    assert settings(message)["shrink-weight"] == 40


def _nan(message: Message) -> Message:
    return answer(message, [np.nan], client=2)


def _huge(message: Message) -> Message:
    return answer(message, [1e30], client=2)


def _shape(message: Message) -> Message:
    return answer(message, [0.9, 0.9], client=2)


def _replay(message: Message) -> Message:
    return answer(message, [0.9], client=2, server_round=int(settings(message)["round"]) - 1)


def _heavy(message: Message) -> Message:
    return answer(message, [0.9], client=2, weight=1e12)


def _curve(message: Message) -> Message:
    return answer(message, [0.9], client=2, curve=[1.0] * 7)


def _error(message: Message) -> Message:
    return fail(message)


def _silent(message: Message) -> None:
    return None


@pytest.mark.parametrize(
    ("culprit", "reason"),
    [
        (_nan, "not-finite"),
        (_huge, "out-of-bounds"),
        (_shape, "unreadable-array"),
        (_replay, "wrong-round"),
        (_heavy, "bad-weight"),
        (_curve, "bad-metric"),
        (_error, None),
        (_silent, None),
    ],
)
def test_a_bad_client_does_not_move_the_result(culprit: Any, reason: str | None) -> None:
    def good(client: int, value: float) -> Any:
        return sends([value], client=client, curve=[1, 2])

    def run(clients: dict[int, Any]) -> tuple[Hierarchical, np.ndarray]:
        strategy = Hierarchical(CLUSTERS, bounds=(0.0, 1.0))
        grid = FakeGrid(clients)
        result = strategy.start(grid, initial(0.5), 3)  # type: ignore[arg-type]
        return strategy, result.arrays["policy"].numpy()

    honest = {10: good(0, 0.2), 11: good(1, 0.6)}
    _, expected = run(honest)

    def trains_badly(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            return culprit(message)
        return answer(message, [0.0], client=2, curve=[1, 2])

    strategy, policy = run({**honest, 12: trains_badly})
    np.testing.assert_array_equal(policy, expected)
    record = strategy.history[1]
    if reason is None:
        assert [(entry.client, bool(entry.reason)) for entry in record.failed] == [(2, True)]
    else:
        assert [(entry.reason, entry.client) for entry in record.refused] == [(reason, 2)]
        assert record.refused_by_reason == {reason: 1}
    assert record.sums["curve"] == [2, 4]


def test_a_duplicate_reply_does_not_move_the_result() -> None:
    class Echoing(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            return replies + [reply for reply in replies if reply.metadata.src_node_id == 12]

    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    plain = Hierarchical().start(grid, initial(0.5), 2)
    strategy = Hierarchical(AssignedClusters({10: 0, 11: 1, 12: 2}, [0, 0, 0]))
    result = strategy.start(Echoing(grid.clients), initial(0.5), 2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(result.arrays["policy"].numpy(), plain.arrays["policy"].numpy())
    assert strategy.history[0].refused_by_reason == {"duplicate": 2}  # one training, one evaluation


def test_the_order_of_replies_does_not_matter() -> None:
    class Shuffled(FakeGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            return super().send_and_receive(messages, timeout=timeout)[::-1]

    values = np.random.default_rng(4).random(17)
    clients = {100 - c: sends([v], client=c, weight=c + 0.1) for c, v in enumerate(values)}
    table = AssignedClusters({100 - c: c for c in range(17)}, [c % 3 for c in range(17)])
    policies = []
    for grid in (FakeGrid(clients), Shuffled(clients)):
        strategy = Hierarchical(table)
        strategy.start(grid, initial(0.5), num_rounds=2)  # type: ignore[arg-type]
        policies.append(strategy.policy)
    np.testing.assert_array_equal(*policies)


def test_when_all_clients_fail_the_run_fails() -> None:
    grid = FakeGrid({10: lambda m: fail(m, "no disk"), 11: lambda m: None})
    with pytest.raises(RoundFailed, match=r"training of round 1.*no disk.*no reply"):
        Hierarchical().start(grid, initial(0.5), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("silent", "ends"), [((2, 3), False), ((1,), True), ((2, 3, 4), True)])
def test_a_round_that_nobody_answers_changes_nothing(
    silent: tuple[int, ...], ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def client(message: Message) -> Message | None:
        number = int(message.metadata.group_id)
        if number in silent:
            return None if number == 2 else fail(message, "away", ErrorCode.NODE_UNAVAILABLE)
        return answer(message, [0.1 * number], client=0)

    strategy = Hierarchical()
    failed = pytest.raises(RoundFailed, match=f"round {silent[-1]}: no usable reply")
    with caplog.at_level("WARNING", logger="flwr"), failed if ends else nullcontext():
        strategy.start(FakeGrid({10: client}), initial(0.5), 5)  # type: ignore[arg-type]
    assert [record.counted for record in strategy.history] == (
        [True, False, False, True, True] if not ends else [True, False, False][: silent[-1] - 1]
    )
    if not ends:
        assert strategy.policy == pytest.approx(0.5)
        assert "round 2: no usable reply" in caplog.text and "stay as they are" in caplog.text


def test_when_all_evaluations_fail_the_run_goes_on_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def client(message: Message) -> Message:
        if message.metadata.message_type == "train":
            return answer(message, [0.4], client=0)
        return fail(message, "no disk")

    rounds: list[int] = []
    strategy = Hierarchical(on_round=lambda record: rounds.append(record.round))
    with caplog.at_level("WARNING", logger="flwr"):
        result = strategy.start(FakeGrid({10: client}), initial(0.5), 2)  # type: ignore[arg-type]
    assert rounds == [1, 2] and strategy.policy == pytest.approx(0.4)
    assert not result.evaluate_metrics_clientapp
    assert [one.reason for one in strategy.history[1].evaluation_failed] == ["no disk"]
    assert not strategy.history[1].evaluation_sums
    told = [line for line in caplog.messages if line.startswith("evaluation of round 1: no usable")]
    assert len(told) == 1 and "no disk" in told[0] and "goes on without its figures" in told[0]


def test_too_few_replies_leave_the_policy_alone() -> None:
    grid = FakeGrid({10: sends([0.9], client=0), 11: lambda m: None, 12: lambda m: None})
    strategy = Hierarchical(min_clients=2, fraction_evaluate=0)
    result = strategy.start(grid, initial(0.5), num_rounds=1)  # type: ignore[arg-type]
    assert not strategy.history[0].counted
    assert result.arrays["policy"].numpy() == 0.5


def test_waiting_for_nodes_ends() -> None:
    strategy = Hierarchical(min_clients=5, node_wait_s=0.3, poll_s=0.05)
    begun = time.monotonic()
    with pytest.raises(NotEnoughNodes, match=r"connected: 3; needed: 5 within 0.3 s"):
        strategy.start(_three((0, 1), (0, 1), (0, 1)), initial(0.5))  # type: ignore[arg-type]
    assert time.monotonic() - begun > 0.25


def test_nodes_that_come_late_are_waited_for() -> None:
    class Late(FakeGrid):
        calls = 0

        def get_node_ids(self) -> list[int]:
            self.calls += 1
            return [10, 11, 12] if self.calls > 2 else [10]

    strategy = Hierarchical(min_nodes=3, poll_s=0.01)
    strategy.start(Late(_three((0.2, 1), (0.2, 1), (0.2, 1)).clients), initial(0.5), 1)  # type: ignore[arg-type]
    assert strategy.history[0].asked == [10, 11, 12]  # the map knows no client indices


def _population(node_of: dict[int, int]) -> FakeGrid:
    """Clients with values of their own, drifting towards what they were sent."""

    def client(index: int) -> Any:
        def reply(message: Message) -> Message:
            start = received(message)
            return answer(
                message, 0.7 * start + 0.03 * index, client=index, weight=index % 4, loss=0.5
            )

        return reply

    return FakeGrid({node: client(index) for node, index in node_of.items()})


def test_sampling_repeats_whatever_the_node_ids() -> None:
    def run(node_of: dict[int, int]) -> tuple[list[list[int]], np.ndarray]:
        clusters = AssignedClusters(node_of, [index % 3 for index in range(20)])
        strategy = Hierarchical(clusters, fraction_train=0.4, fraction_evaluate=0.2, seed=9)
        strategy.start(_population(node_of), initial(0.5), num_rounds=5)  # type: ignore[arg-type]
        return [record.asked for record in strategy.history], strategy.policy

    asked, policy = run({1000 + index: index for index in range(20)})
    again, same = run({77 - index: index for index in range(20)})
    assert asked == again
    np.testing.assert_array_equal(policy, same)
    assert all(len(set(one)) == 8 for one in asked)
    assert len({tuple(one) for one in asked}) > 1


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
@pytest.mark.parametrize("edge_rule", ["weighted-mean", "fedyogi", "trimmed-mean"])
@pytest.mark.parametrize("cloud_rule", ["unweighted-mean", "fedadam", "fedavgm"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, edge_rule: str, cloud_rule: str
) -> None:
    node_of = {500 + index: index for index in range(12)}

    def make() -> Hierarchical:
        clusters = AssignedClusters(node_of, [index % 3 for index in range(12)])
        return build_strategy(
            name, edge_rule, cloud_rule, clusters, fraction_train=0.5, personalisation="cluster"
        )

    whole = make()
    whole.start(_population(node_of), initial(0.5, 0.1), num_rounds=6)  # type: ignore[arg-type]
    first = make()
    first.start(_population(node_of), initial(0.5, 0.1), num_rounds=3)  # type: ignore[arg-type]
    second = make()
    second.load_state_dict(state_from_bytes(state_to_bytes(first.state_dict())))
    result = second.start(_population(node_of), initial(0.5, 0.1), num_rounds=6)  # type: ignore[arg-type]
    np.testing.assert_array_equal(second.policy, whole.policy)
    np.testing.assert_array_equal(second.cluster_policies, whole.cluster_policies)
    assert [record.round for record in second.history] == [4, 5, 6]
    assert list(result.train_metrics_clientapp) == [4, 5, 6]
    for ours, theirs in zip(second.history, whole.history[3:], strict=True):
        assert replace(ours, seconds=0.0) == replace(theirs, seconds=0.0)


def test_a_state_of_other_arrays_is_refused_by_name() -> None:
    first = Hierarchical(CLUSTERS)
    first.start(_three((0.2, 3), (0.6, 1), (0.9, 7)), initial(0.5), num_rounds=1)
    for arrays in ({"threshold": [0.5]}, {"policy": [0.5, 0.1]}):
        again = Hierarchical(CLUSTERS)
        again.load_state_dict(first.state_dict())
        record = ArrayRecord({n: Array(np.array(value)) for n, value in arrays.items()})
        with pytest.raises(ValueError, match=r"arrays policy \[1\]; allowed: (thres|policy \[2)"):
            again.start(_three(), record, num_rounds=2)


def test_clients_get_their_own_value_as_last_accepted_after_a_resume_too() -> None:
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    first = Hierarchical(CLUSTERS, personalisation="local")
    first.start(grid, initial(0.5), num_rounds=1)
    second = Hierarchical(CLUSTERS, personalisation="local")
    second.load_state_dict(first.state_dict())
    grid.clients[11] = _silent
    second.start(grid, initial(0.5), num_rounds=3)
    for server_round in (2, 3):
        message = _train_messages(grid, server_round)[1]
        np.testing.assert_allclose(received(message, "own"), [0.6])
        assert settings(message)["own-weight"] == 1
        assert settings(message)["accepted-round"] == 1


def test_a_second_start_goes_on_from_where_the_first_ended() -> None:
    def client(message: Message) -> Message:
        return answer(message, received(message) + 0.1, client=0)

    strategy = Hierarchical()
    grid = FakeGrid({10: client})
    strategy.start(grid, initial(0.5), num_rounds=2)  # type: ignore[arg-type]
    result = strategy.start(grid, initial(0.0), num_rounds=3)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.8])


def test_a_model_of_another_app_is_averaged_too() -> None:
    """Several arrays, float32, and replies that know nothing of rounds and clients."""

    def client(shift: float) -> Any:
        def reply(message: Message) -> Message:
            arrays = {
                name: Array(array.numpy() + np.float32(shift))
                for name, array in message.content.array_records["arrays"].items()
            }
            content = RecordDict({"metrics": MetricRecord({"num-examples": 2, "loss": shift})})
            if message.metadata.message_type == "train":
                content["arrays"] = ArrayRecord(arrays)
            return Message(content, reply_to=message)

        return reply

    start = ArrayRecord(
        {
            "weight": Array(np.ones((2, 3), dtype=np.float32)),
            "bias": Array(np.zeros(2, dtype=np.float32)),
        }
    )
    strategy = Hierarchical(require_echo=False)
    grid = FakeGrid({1: client(0.5), 2: client(1.5)})
    result = strategy.start(grid, start, num_rounds=2)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.arrays["weight"].numpy(), np.full((2, 3), 3.0))
    assert result.arrays["bias"].numpy().dtype == np.float32
    assert result.train_metrics_clientapp[2]["loss"] == 1.0


def test_on_round_comes_after_the_evaluation_and_is_json() -> None:
    seen: list[RoundRecord] = []
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    strategy = Hierarchical(CLUSTERS, on_round=seen.append, evaluate_every=2)
    result = strategy.start(grid, initial(0.5), num_rounds=4)
    assert [record.round for record in seen] == [1, 2, 3, 4]
    assert [bool(record.evaluation_sums) for record in seen] == [False, True, False, True]
    assert sorted(result.evaluate_metrics_clientapp) == [2, 4]
    json.dumps([asdict(record) for record in seen])


def test_flowers_own_loop_runs_it_as_well() -> None:
    from flwr.serverapp.strategy import Strategy

    strategy = Hierarchical(CLUSTERS)
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    result = Strategy.start(strategy, grid, initial(0.5), num_rounds=2)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.arrays["policy"].numpy(), [0.6])


def test_recluster_starts_new_clusters_at_their_members_mean() -> None:
    strategy = Hierarchical(CLUSTERS, personalisation="cluster", keep_values=True)
    grid = _three((0.2, 3), (0.6, 1), (0.9, 7))
    strategy.start(grid, initial(0.5), num_rounds=1)
    strategy.recluster(AssignedClusters({10: 0, 11: 1, 12: 2}, [0, 1, 1], 3), {0: 0, 1: 1, 2: 1})
    np.testing.assert_allclose(
        strategy.cluster_policies[:, 0], [0.2, (0.6 + 6.3) / 8, strategy.policy[0]]
    )
    strategy.start(grid, initial(0.5), num_rounds=2)
    assert strategy.history[-1].heard == [True, True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"fraction_train": -0.1},
        {"fraction_evaluate": 1.5},
        {"min_clients": 0},
        {"evaluate_every": 0},
        {"personalisation": "own"},
        {"shrink_weight": -1.0},
        {"max_weight": 0.0},
        {"seed": -1},
        {"poll_s": 0.0},
        {"cloud_weights": "tokens"},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Hierarchical(**options)


def test_a_start_outside_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="bounds"):
        Hierarchical(bounds=(0, 1)).start(_three((0.2, 1)), initial(1.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["edge_rule", "cloud_rule"])
def test_an_unknown_rule_is_named_before_the_first_round(which: str) -> None:
    with pytest.raises(ValueError, match="averages"):
        Hierarchical(**{which: "averages"})  # type: ignore[arg-type]


def test_unknown_strategy_is_named() -> None:
    with pytest.raises(ValueError, match=r"fedsgd.*fedavg, fedprox, scaffold, fednova"):
        build_strategy("fedsgd")


@settings_(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.3, 0.4), min_size=16, max_size=16),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.sampled_from(["fedtrimmedavg", "fedmedian"]),
)
def test_a_fifth_of_liars_within_bounds_moves_a_robust_round_little(
    honest: list[float], lies: list[float], rule: str
) -> None:
    """Bound: the honest values' own range, here at most 0.1; the plain mean has no such bound."""
    everyone = [*lies, *honest]
    clients = {node: sends([value], client=node) for node, value in enumerate(everyone)}
    table = AssignedClusters({node: node for node in range(20)}, [0] * 20)
    strategy = Hierarchical(table, edge_rule=rule, bounds=(0.0, 1.0), fraction_evaluate=0)
    strategy.start(FakeGrid(clients), initial(0.5), num_rounds=1)  # type: ignore[arg-type]
    assert abs(strategy.policy[0] - np.mean(honest)) <= np.ptp(honest) + 1e-12
