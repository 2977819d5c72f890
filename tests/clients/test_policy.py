from __future__ import annotations

import numpy as np
import pytest

from clients.policy import FixedPolicy, RandomPolicy, RouterPolicy, RoutingInput, ThresholdPolicy
from hlm.randomness import DrawKeys

UNCERTAINTY = np.array([0.0, 0.3, 0.5, 0.500001, 1.0])


def inputs_of(uncertainty, features=None):
    rows = np.arange(len(uncertainty))
    return RoutingInput(uncertainty, DrawKeys(0, rows.astype(np.uint64), rows), features)


def test_threshold_keeps_up_to_and_including_itself():
    policy = ThresholdPolicy(0.5)
    assert policy.keep(inputs_of(UNCERTAINTY)).tolist() == [True, True, True, False, False]


def test_thresholds_outside_the_unit_interval_mean_none_and_all():
    assert not ThresholdPolicy(-1).keep(inputs_of(UNCERTAINTY)).any()
    assert ThresholdPolicy(1).keep(inputs_of(UNCERTAINTY)).all()


def test_always_keeps_and_never_does_not():
    assert FixedPolicy(kept=True).keep(inputs_of(UNCERTAINTY)).all()
    assert not FixedPolicy(kept=False).keep(inputs_of(UNCERTAINTY)).any()


def test_random_escalates_its_share():
    kept = RandomPolicy(0.3).keep(inputs_of(np.zeros(20_000)))
    # Six standard deviations: a false alarm in 5e8 seeds, and this seed is fixed.
    assert abs(kept.mean() - 0.7) < 6 * np.sqrt(0.21 / 20_000)


def test_the_router_compares_its_own_score():
    def model(weights, features):
        return features[:, 0] * weights[0]

    policy = RouterPolicy(0.5, np.array([2.0]), model)
    features = np.array([[0.1], [0.25], [0.3]], np.float32)
    inputs = inputs_of(np.ones(3), features)
    assert policy.keep(inputs).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "make",
    [lambda: ThresholdPolicy(float("nan")), lambda: RandomPolicy(1.5), lambda: RandomPolicy(-0.1)],
)
def test_bad_parameters_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_missing_inputs_are_named():
    with pytest.raises(ValueError, match="features"):
        RouterPolicy(0.0, np.zeros(1), lambda w, f: f[:, 0]).keep(inputs_of(UNCERTAINTY))
