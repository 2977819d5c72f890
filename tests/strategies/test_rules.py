from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.flower_rule import FlowerRule
from strategies.rules import RULES, build_rule
from strategies.tiers import make_rule

FLOWER = {
    "fedavg": lambda: flower.FedAvg(),
    "fedmedian": lambda: flower.FedMedian(),
    "fedtrimmedavg": lambda: flower.FedTrimmedAvg(beta=0.2),
    "krum": lambda: flower.Krum(num_malicious_nodes=1),
    "multikrum": lambda: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3),
    "fedadam": lambda: flower.FedAdam(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
    "fedyogi": lambda: flower.FedYogi(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
    "fedadagrad": lambda: flower.FedAdagrad(eta=0.05, tau=1e-2),
    "fedavgm": lambda: flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.6),
    "bulyan": lambda: flower.Bulyan(num_malicious_nodes=1),
}
OPTIONS: dict[str, dict[str, float]] = {
    "fedtrimmedavg": {"trim": 0.2},
    "krum": {"malicious": 1},
    "multikrum": {"malicious": 2, "select": 3},
    "fedadam": {"learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "fedyogi": {"learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "fedadagrad": {"learning_rate": 0.05, "tau": 1e-2},
    "fedavgm": {"learning_rate": 0.7, "momentum": 0.6},
    "bulyan": {"malicious": 1},
}


class _Nodes:
    def get_node_ids(self) -> list[int]:
        return [1, 2]


def _flower_round(
    strategy: flower.Strategy,
    server_round: int,
    current: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    record = ArrayRecord({"policy": Array(current)})
    list(strategy.configure_train(server_round, record, ConfigRecord(), _Nodes()))  # type: ignore[arg-type]
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"policy": Array(value)}),
                    "metrics": MetricRecord({"num-examples": float(weight)}),
                }
            ),
            dst_node_id=node + 1,
            message_type="train",
        )
        for node, (value, weight) in enumerate(zip(values, weights, strict=True))
    ]
    arrays, _ = strategy.aggregate_train(server_round, replies)
    assert arrays is not None
    return arrays["policy"].numpy()


@pytest.mark.parametrize("name", sorted(FLOWER))
def test_rule_equals_flowers_own_strategy_round_by_round(
    name: str, rng: np.random.Generator
) -> None:
    theirs = FLOWER[name]()
    ours = build_rule(name, **OPTIONS.get(name, {}))
    current = rng.normal(size=4)
    # Flower's Bulyan collects garbage for every array it reads, so it gets fewer of them.
    rounds, count = (1, 7) if name == "bulyan" else (6, 11)
    for server_round in range(1, rounds + 1):
        values = current + rng.normal(0.3, 0.5, size=(count, 4))
        weights = rng.integers(1, 50, size=count).astype(float)
        expected = _flower_round(theirs, server_round, current, values, weights)
        result = ours.combine(values, weights, current)
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)
        current = result


@pytest.mark.parametrize("name", sorted(set(RULES) - {"bulyan"}))
def test_state_survives_and_is_a_copy(name: str, rng: np.random.Generator) -> None:
    first, second = build_rule(name), build_rule(name)
    current = np.zeros(3)
    for step in range(6):
        values = rng.normal(size=(8, 3))
        if step == 3:
            second.load_state_dict(first.state_dict())
        result = first.combine(values, np.ones(8), current)
        if step >= 3:
            np.testing.assert_array_equal(second.combine(values, np.ones(8), current), result)
        current = result
    assert first.stateful == bool(first.state_dict())


def test_uniform_ignores_weights() -> None:
    values = np.array([[0.0], [1.0]])
    np.testing.assert_allclose(
        build_rule("unweighted-mean").combine(values, np.array([9.0, 1.0]), np.zeros(1)), [0.5]
    )


@given(
    arrays(np.float64, (16, 3), elements=st.floats(-1, 1)),
    arrays(np.float64, (4, 3), elements=st.floats(-1e9, 1e9)),
)
def test_a_fifth_of_liars_moves_the_clipped_mean_by_a_fifth_of_its_bound(
    honest: np.ndarray, lies: np.ndarray
) -> None:
    previous = np.array([0.1, -0.2, 0.3])
    values = np.concatenate([lies, honest])
    moved = build_rule("clipped-mean").combine(values, np.ones(20), previous) - previous
    changes = values - previous
    bound = np.sort(np.linalg.norm(changes, axis=1))[9]
    longest = np.linalg.norm(honest - previous, axis=1).max()
    assert bound <= longest
    lengths = np.linalg.norm(changes[4:], axis=1, keepdims=True)
    ours = (changes[4:] * np.minimum(1, bound / np.maximum(lengths, 1e-300))).sum(axis=0) / 20
    assert np.linalg.norm(moved - ours) <= 4 * bound / 20 + 1e-9
    assert np.linalg.norm(moved) <= longest + 1e-9


def test_the_clipped_mean_of_members_that_stay_is_no_move() -> None:
    previous = np.array([0.4])
    values = np.array([[0.4], [0.4], [9.0]])
    np.testing.assert_array_equal(
        build_rule("clipped-mean").combine(values, np.ones(3), previous), previous
    )


def test_any_flower_strategy_serves_as_a_rule(rng: np.random.Generator) -> None:
    rule = FlowerRule(lambda: flower.FedTrimmedAvg(beta=0.4))
    values = rng.normal(size=(10, 3))
    expected = np.sort(values, axis=0)[4:6].mean(axis=0)
    np.testing.assert_allclose(rule.combine(values, np.ones(10), np.zeros(3)), expected)


def test_a_rule_is_given_by_name_itself_or_by_what_makes_it() -> None:
    rule = FlowerRule(lambda: flower.FedTrimmedAvg(beta=0.4))
    values, ones = np.array([[1.0], [2.0], [9.0]]), np.ones(3)
    for source in (rule, lambda: rule):
        np.testing.assert_array_equal(make_rule(source).combine(values, ones, ones[:1]), [2.0])
    momentum = build_rule("fedavgm", momentum=0.9)
    first, second = make_rule(momentum), make_rule(momentum)
    assert first.combine(values, ones, ones[:1]) == second.combine(values, ones, ones[:1])
    for wrong in (flower.FedAvg(), None, 2):
        with pytest.raises(TypeError, match=r"allowed: a name in RULES.*FlowerRule"):
            make_rule(wrong)
    with pytest.raises(TypeError, match="a function that makes a strategy"):
        FlowerRule(flower.FedAvg())


def test_bulyan_with_too_few_values_changes_nothing() -> None:
    previous = np.array([0.4])
    result = build_rule("bulyan", malicious=1).combine(np.ones((6, 1)), np.ones(6), previous)
    np.testing.assert_array_equal(result, previous)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("average", {}, "allowed: bulyan"),
        ("weighted-mean", {"trim": 0.1}, "options"),
        ("mean", {}, r"now called weighted-mean \(by n_k, eq. 7\) or unweighted-mean \(eq. 8\)"),
        ("uniform", {}, "now called unweighted-mean"),
        ("trimmed-mean", {"trim": 0.5}, "trim"),
        ("fedadam", {"tau": 0.0}, "tau"),
        ("fedavgm", {"momentum": 1.0}, "momentum"),
        ("multikrum", {"select": 0}, "select"),
        ("bulyan", {"malicious": -1}, "malicious"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rule(name, **options)
