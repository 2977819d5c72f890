from __future__ import annotations

import numpy as np
import pytest

from strategies.rules import ServerMomentum
from strategies.tiers import TierRules, Tiers

LOW, HIGH = np.zeros(1), np.ones(1)


def _tiers(
    edge: object = "weighted-mean", cloud: object = "unweighted-mean", clusters: int = 2
) -> Tiers:
    rules = TierRules(edge, cloud)  # type: ignore[arg-type]
    return Tiers(np.array([0.5]), clusters, rules, LOW, HIGH)


def test_every_cluster_has_an_edge_rule_of_its_own() -> None:
    tiers = _tiers(lambda: ServerMomentum(1.0, 0.5))
    values, weights = np.array([[0.6], [0.4]]), np.ones(2)
    clusters, starts = np.array([0, 1]), np.full((2, 1), 0.5)
    for _ in range(2):
        tiers.cloud_step(*tiers.edge_step(values, weights, clusters, starts))
    # Velocity after two steps: .1 + .5 * .1 = .15, up in one cluster and down in the other.
    np.testing.assert_allclose(tiers.clusters[:, 0], [0.65, 0.35])
    np.testing.assert_allclose(tiers.policy, [0.5])


def test_a_members_weight_of_zero_has_no_say_in_a_median() -> None:
    tiers = _tiers("median", clusters=1)
    values = np.array([[0.2], [0.3], [0.9], [0.9], [0.9]])
    weights = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    tiers.cloud_step(*tiers.edge_step(values, weights, np.zeros(5, int), np.full((1, 1), 0.5)))
    np.testing.assert_allclose(tiers.policy, [0.25])


def test_a_server_step_that_goes_too_far_is_clamped() -> None:
    tiers = _tiers(cloud=lambda: ServerMomentum(learning_rate=50.0, momentum=0.0))
    values, clusters = np.array([[0.6], [0.6]]), np.array([0, 1])
    tiers.cloud_step(*tiers.edge_step(values, np.ones(2), clusters, np.full((2, 1), 0.5)))
    assert tiers.policy == 1.0


def test_a_silent_round_leaves_the_cloud_rule_alone() -> None:
    tiers = _tiers(cloud="fedadam")
    before = tiers.state_dict()
    values, clusters = np.array([[0.6], [0.6]]), np.array([0, 1])
    tiers.cloud_step(*tiers.edge_step(values, np.zeros(2), clusters, np.full((2, 1), 0.5)))
    assert tiers.state_dict()["cloud"] == before["cloud"]
    assert tiers.policy == 0.5


def test_a_state_of_another_size_is_refused() -> None:
    state = Tiers(np.zeros(3), 2, TierRules(), np.zeros(3), np.ones(3)).state_dict()
    with pytest.raises(ValueError, match="clusters of shape"):
        _tiers().load_state_dict(state)


def test_a_million_replies_are_averaged() -> None:
    generator = np.random.default_rng(1)
    values, weights = generator.random((10**6, 1)), generator.random(10**6)
    clusters = generator.integers(0, 100, 10**6)
    tiers = _tiers(clusters=100)
    tiers.cloud_step(*tiers.edge_step(values, weights, clusters, np.full((100, 1), 0.5)))
    means = [
        np.average(values[clusters == c, 0], weights=weights[clusters == c]) for c in range(100)
    ]
    np.testing.assert_allclose(tiers.policy, [np.mean(means)], rtol=1e-12)
