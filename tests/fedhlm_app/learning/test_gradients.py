from __future__ import annotations

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from fedhlm_app.learning.gradients import (
    initial_policy,
    learn_locally,
    policy_bounds,
    private_policy,
    step_size,
)
from fedhlm_app.settings import SettingsError
from hlm.arrays import joined
from tests.learning import feedback, settings_of


@pytest.mark.parametrize("rule", ["balanced", "primal-dual"])
def test_unknown_tokens_do_not_count_as_right(rule):
    """Without audits nobody stands for a token of unknown beta."""
    chosen = settings_of(learning=rule)
    known = feedback()
    unknown = Feedback.create(
        np.full(200, 0.5), np.zeros(200), known=np.zeros(200), kept=np.ones(200)
    )
    steps = [
        learn_locally(chosen, joined(initial_policy(chosen)), data, {"round": 1}, {})
        for data in (known, Feedback.concatenate([known, unknown]))
    ]
    assert np.array_equal(steps[0].result.policy, steps[1].result.policy)
    assert steps[0].examples == steps[1].examples == len(known)


def test_steps_are_the_rules_own_unless_given():
    assert step_size(settings_of(learning="paper"), 1) == 0.02
    assert step_size(settings_of(learning="paper"), 4) == 0.005
    assert step_size(settings_of(learning="balanced"), 1) > step_size(
        settings_of(learning="paper"), 1
    )
    given = settings_of(learning="balanced", learning_rate=0.5, learning_rate_decay=0.5)
    assert step_size(given, 3) == 0.25


def test_a_round_with_nothing_to_learn_from_changes_nothing():
    chosen = settings_of(learning="paper", local_steps=5)
    kept = Feedback.create([0.1, 0.2], [0.0, 1.0], kept=[True, True])
    for nothing in (kept, Feedback.empty()):
        step = learn_locally(chosen, np.array([0.4]), nothing, {"round": 1}, {})
        assert step.result.policy.tolist() == [0.4] and step.examples == 0
        assert step.loss_before == step.loss_after == 0.0
        # What no rule asked for does not travel.
        assert step.result.arrays == {}
        scaffold = {"round": 1, "local-method": "scaffold"}
        controls = {"control": np.array([0.3]), "client_control": np.array([0.2])}
        step = learn_locally(chosen, np.array([0.4]), nothing, scaffold, controls)
        assert step.result.arrays == {"control_delta": [0.0]}


@pytest.mark.parametrize("rule", ["paper", "balanced", "primal-dual"])
def test_local_steps_lower_the_rules_own_loss(rule):
    chosen = settings_of(learning=rule, local_steps=4)
    start = joined(initial_policy(chosen))
    step = learn_locally(chosen, start, feedback(seed=5), {"round": 1}, {})
    assert step.examples > 0 and step.result.steps == 4
    if rule != "primal-dual":  # a saddle point: its dual variable climbs
        assert step.loss_after < step.loss_before
    assert not np.array_equal(step.result.policy, start)


def test_nothing_is_kept_before_there_is_a_guarantee():
    assert initial_policy(settings_of(learning="certified")) == {"threshold": [-1]}
    assert initial_policy(settings_of(learning="paper")) == {"threshold": [0.5]}


def test_noise_is_added_within_the_bounds():
    chosen = settings_of(privacy="local", privacy_clip=0.1, privacy_noise=1.0)
    start, policy = np.array([0.5]), np.array([0.52])
    rng = np.random.default_rng(0)
    sent = np.array([private_policy(chosen, policy, start, 1, rng)[0] for _ in range(2000)])
    low, high = policy_bounds(chosen)
    assert (low <= sent).all() and (sent <= high).all()
    # Standard deviation 2 clip z = .2, bounds two and a half deviations away.
    assert sent.mean() == pytest.approx(0.52, abs=0.03) and sent.std() == pytest.approx(0.2, 0.1)
    plain = settings_of()
    assert private_policy(plain, policy, start, 1, rng) is policy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning": "certified", "strategy": "scaffold"}, "adds up sums"),
        ({"learning": "linear", "edge_rule": "fedmedian"}, "adds up sums"),
        ({"learning": "certified", "personalisation": "shrunk"}, "cannot be joined"),
        ({"privacy": "central", "edge_rule": "fedmedian"}, "made for means"),
        ({"privacy": "local", "strategy": "scaffold"}, "bare what the noise hides"),
        ({"privacy": "local", "personalisation": "local"}, "where a client starts"),
        (
            {
                "learning": "certified",
                "workload": "score",
                "fraction_train": 0.25,
                "calibration_rounds": 3,
            },
            "hear 15 of 20 clients.*calibration-rounds to 4 or more",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(SettingsError, match=message):
        settings_of(**changes)
