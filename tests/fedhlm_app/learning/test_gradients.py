from __future__ import annotations

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from clients.records import Stage, TokenRecords, Traffic
from fedhlm_app.client.routed import Routed, calibration_feedback
from fedhlm_app.learning.gradients import (
    initial_policy,
    learn_locally,
    policy_bounds,
    private_policy,
    step_size,
)
from fedhlm_app.learning.sums import (
    GRID,
    calibrates,
    calibration_of,
    is_sequential,
    levels,
    loss_bound,
    problem_of,
    prompts_counted,
    reads_kept_tokens,
    sums_of,
)
from fedhlm_app.settings import Settings, SettingsError
from hlm.line import LineSums
from hlm.risk import RiskSums, conformal_threshold, learn_then_test
from hlm.risk.betting import log_terms


def settings(**changes) -> Settings:
    return Settings.from_sources({k.replace("_", "-"): v for k, v in changes.items()}, {})


def feedback(seed=0, prompts=12, each=5, threshold=0.6) -> Feedback:
    rng = np.random.default_rng(seed)
    u = rng.random(prompts * each)
    return Feedback.create(
        u,
        (rng.random(len(u)) < u / 2).astype(float),
        kept=u <= threshold,
        prompt=np.repeat(np.arange(prompts), each),
    )


ASKED = {"tokens_per_round": 60, "tokens_per_prompt": 5}
"""Settings under which a device is asked for the prompts of `feedback()`."""


def as_arrays(metrics):
    return {name: np.array(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("changes", "sums", "one_by_one"),
    [
        ({"learning": "certified"}, True, True),
        ({"learning": "certified", "workload": "score"}, True, False),
        ({"learning": "linear"}, True, False),
        ({"learning": "balanced"}, False, False),
        ({"learning": "certified", "policy": "random"}, False, True),
    ],
)
def test_which_rules_need_sums(changes, sums, one_by_one):
    assert calibrates(settings(**changes)) == sums
    assert is_sequential(settings(**changes)) == one_by_one


def test_audits_take_the_place_of_readings():
    assert reads_kept_tokens(settings(learning="certified"))
    audited = settings(learning="certified", audit_rate=0.25)
    assert not reads_kept_tokens(audited)
    assert loss_bound(audited) == 4.0


def test_an_expected_risk_follows_from_the_levels_of_the_sequence():
    alpha, delta = levels(settings(learning="certified", fidelity_budget=0.1))
    assert (1 - delta) * alpha + delta <= 0.1
    assert levels(
        settings(learning="certified-high-probability", fidelity_budget=0.1, confidence=0.2)
    ) == (0.1, 0.2)


@pytest.mark.parametrize("rule", ["certified", "certified-high-probability"])
def test_pooled_sums_of_clients_give_the_threshold_of_all_prompts(rule):
    chosen = settings(learning=rule, workload="score", fidelity_budget=0.2)
    calibration = calibration_of(chosen)
    replies = {s: as_arrays(sums_of(chosen, feedback(s))) for s in range(8)}
    calibration.absorb(0, replies, range(8))
    curve = RiskSums.from_vector(sum(reply["risk-curve"] for reply in replies.values()))
    assert curve.prompts == 96
    if rule == "certified":
        expected = conformal_threshold(curve.risk, 96, GRID, 0.2)
    else:
        expected = learn_then_test(curve.risk, 96, GRID, 0.2, 0.05)
    assert calibration.result(0) == expected > 0


@pytest.mark.parametrize("side", ["risk-averse", "risk-prone"])
def test_the_line_equals_least_squares_on_all_tokens(side):
    chosen = settings(learning="linear", line_threshold=side)
    calibration = calibration_of(chosen)
    parts = [feedback(s) for s in range(3)]
    replies = {s: as_arrays(sums_of(chosen, part)) for s, part in enumerate(parts)}
    calibration.absorb(0, replies, range(3))
    whole = Feedback.concatenate(parts)
    slope, intercept = np.polyfit(whole.u, whole.ratio_beta, 1)
    level = 0.0 if side == "risk-averse" else whole.below.mean()
    assert calibration.result(0) == pytest.approx(np.clip((level - intercept) / slope, 0, 1))


def test_a_line_without_data_keeps_the_threshold():
    chosen = settings(learning="linear", initial_threshold=0.4)
    calibration = calibration_of(chosen)
    calibration.absorb(0, {0: {"line-sums": LineSums().to_array()}}, {0})
    assert calibration.result(0) == 0.4


def test_bets_are_about_what_the_policy_kept():
    chosen = settings(learning="certified-high-probability")
    data = feedback(1)
    found = sums_of(chosen, data)["wealth"]
    risk = [(data.beta * data.kept)[data.prompt == p].mean() for p in range(12)]
    assert np.allclose(found, log_terms(np.array(risk), 0.05))


@pytest.mark.parametrize("rule", ["linear", "certified"])
def test_a_device_sends_what_the_server_expects(rule):
    chosen = settings(learning=rule)
    for data in (feedback(), Feedback.empty()):
        found = sums_of(chosen, data)
        lengths = {name: len(value) for name, value in found.items()}
        assert lengths == calibration_of(chosen).lengths()


@pytest.mark.parametrize("rule", ["linear", "certified"])
def test_sums_of_real_prompts_are_possible(rule):
    chosen = settings(learning=rule, **ASKED)
    for seed in range(5):
        assert problem_of(chosen, as_arrays(sums_of(chosen, feedback(seed)))) == ""


def test_impossible_sums_are_named():
    chosen = settings(learning="certified", **ASKED)
    good = as_arrays(sums_of(chosen, feedback()))
    assert problem_of(chosen, good) == ""
    curve = good["risk-curve"]
    many = {**good, "risk-curve": curve * 1000}
    assert "at most 12 prompts" in problem_of(chosen, many)
    half = curve.astype(float)
    half[0] = 11.5
    assert "at most 12 prompts" in problem_of(chosen, {**good, "risk-curve": half})
    falling = curve.copy()
    falling[5] -= 1e6
    assert problem_of(chosen, {**good, "risk-curve": falling})
    rich = {**good, "wealth": good["wealth"] + 100}
    assert "'wealth' is no sum over 12 prompts" in problem_of(chosen, rich)
    assert problem_of(chosen, {**good, "risk-curve": -curve})
    line = settings(learning="linear")
    assert problem_of(line, {"line-sums": np.array([1.0, 5.0, 0, 1, 0, 0])})


@pytest.mark.parametrize("workload", ["generate", "score", "classify"])
@pytest.mark.parametrize("audit_rate", [0.0, 0.25])
def test_nobody_speaks_for_more_than_was_asked(workload, audit_rate):
    """As many prompts as were asked for are believed, one more is not."""
    chosen = settings(
        learning="certified-high-probability", workload=workload, audit_rate=audit_rate
    )
    asked, alpha = prompts_counted(chosen), levels(chosen)[0]
    assert asked == (30 if workload == "classify" else 3)
    for claimed, believed in ((asked, True), (asked + 1, False), (30, workload == "classify")):
        sums = {"risk-curve": RiskSums(np.zeros(len(GRID)), claimed).as_vector()}
        if workload == "generate":
            sums["wealth"] = log_terms(np.zeros(claimed), alpha, loss_bound(chosen))
        assert (problem_of(chosen, sums) == "") == believed
    line = settings(learning="linear", workload=workload, audit_rate=audit_rate)
    most = 30 * loss_bound(line)
    for count, believed in ((most, True), (most + 1, False)):
        sums = {"line-sums": np.array([count, 0.5 * count, 0, 0.3 * count, 0, 0.0])}
        assert (problem_of(line, sums) == "") == believed


def unresolved(prompts=3, each=10, lost=4, audit_rate=0.0):
    """Feedback of a device whose link was dead for some tokens of each prompt, and what it is of.

    Drafts are right wherever anybody knows; the lost ones are of the largest uncertainty.
    """
    records = TokenRecords(prompts, each)
    records.present[:] = True
    records.uncertainty[:] = np.linspace(0.1, 0.9, each)
    records.kept[:, : each // 2] = True
    records.stage[:] = np.where(records.kept, Stage.LOCAL, Stage.LLM_ACCEPTED)
    records.log_prob[:], records.probability[:], records.draft_choice[:] = 0.0, 1.0, 1
    records.stage[:, each - lost :] = Stage.UNRESOLVED
    if audit_rate:
        records.audited[:, 0] = records.audited[:, 1] = records.escalated[:, :2] = True
        records.stage[:, 0], records.stage[:, 1] = Stage.LLM_ACCEPTED, Stage.UNRESOLVED
    return Routed([records], Traffic(), calibration=np.ones(prompts, np.bool_)), records


@pytest.mark.parametrize("read_later", [True, False])
@pytest.mark.parametrize("audit_rate", [0.0, 0.5])
def test_tokens_without_answer_are_wrong_in_the_wealth_the_curve_and_the_certificate(
    read_later, audit_rate
):
    chosen = settings(
        learning="certified-high-probability", audit_rate=audit_rate, fidelity_budget=0.3
    )
    routed, records = unresolved(audit_rate=audit_rate)
    if not read_later:
        silent = records.unresolved
        records.log_prob[silent], records.draft_choice[silent] = np.nan, -1
    found = as_arrays(sums_of(chosen, calibration_feedback(routed, chosen)))
    # Four tokens of ten; with audits a kept one as well, which stands for two.
    risk = 0.4 if not audit_rate else 0.4 + 0.1 / audit_rate
    bound = loss_bound(chosen)
    assert np.allclose(found["wealth"], log_terms(np.full(3, risk), 0.3, bound))
    curve = RiskSums.from_vector(found["risk-curve"])
    assert np.allclose(curve.risk / 3, risk, atol=1e-4)
    assert records.kept_loss(True)[records.unresolved].tolist() == [1.0] * records.unresolved.sum()


def test_what_a_cache_decided_is_nobodys_loss_at_the_candidate():
    """Hits have a rate of their own; unread ones are wrong only where a draft would be kept."""
    chosen = settings(learning="certified-high-probability", fidelity_budget=0.3)
    routed, records = unresolved(lost=0)
    records.stage[:, 9], records.log_prob[:, 9], records.draft_choice[:, 9] = (
        Stage.CACHE,
        np.nan,
        -1,
    )
    found = as_arrays(sums_of(chosen, calibration_feedback(routed, chosen)))
    assert np.allclose(found["wealth"], log_terms(np.zeros(3), 0.3))
    curve = RiskSums.from_vector(found["risk-curve"])
    assert np.allclose(curve.risk / 3, np.where(GRID >= 0.9, 0.1, 0.0), atol=1e-4)


@pytest.mark.parametrize("rule", ["balanced", "primal-dual"])
def test_unknown_tokens_do_not_count_as_right(rule):
    """Without audits nobody stands for a token of unknown beta."""
    chosen = settings(learning=rule)
    known = feedback()
    unknown = Feedback.create(
        np.full(200, 0.5), np.zeros(200), known=np.zeros(200), kept=np.ones(200)
    )
    steps = [
        learn_locally(chosen, initial_policy(chosen), data, {"round": 1}, None, None)
        for data in (known, known.append(unknown))
    ]
    assert np.array_equal(steps[0].result.policy, steps[1].result.policy)
    assert steps[0].examples == steps[1].examples == len(known)


def test_steps_are_the_rules_own_unless_given():
    assert step_size(settings(learning="paper"), 1) == 0.02
    assert step_size(settings(learning="paper"), 4) == 0.005
    assert step_size(settings(learning="balanced"), 1) > step_size(settings(learning="paper"), 1)
    given = settings(learning="balanced", learning_rate=0.5, learning_rate_decay=0.5)
    assert step_size(given, 3) == 0.25


def test_a_round_with_nothing_to_learn_from_changes_nothing():
    chosen = settings(learning="paper", local_steps=5)
    kept = Feedback.create([0.1, 0.2], [0.0, 1.0], kept=[True, True])
    for nothing in (kept, Feedback.empty()):
        step = learn_locally(chosen, np.array([0.4]), nothing, {"round": 1}, None, None)
        assert step.result.policy.tolist() == [0.4] and step.examples == 0
        assert step.loss_before == step.loss_after == 0.0
        # What no rule asked for does not travel.
        assert step.result.control_delta is None
        scaffold = {"round": 1, "local-method": "scaffold"}
        control = np.array([0.3])
        step = learn_locally(chosen, np.array([0.4]), nothing, scaffold, control, control)
        assert step.result.control_delta.tolist() == [0.0]
        assert step.result.new_client_control.tolist() == [0.3]


@pytest.mark.parametrize("rule", ["paper", "balanced", "primal-dual"])
def test_local_steps_lower_the_rules_own_loss(rule):
    chosen = settings(learning=rule, local_steps=4)
    start = initial_policy(chosen)
    step = learn_locally(chosen, start, feedback(seed=5), {"round": 1}, None, None)
    assert step.examples > 0 and step.result.steps == 4
    if rule != "primal-dual":  # a saddle point: its dual variable climbs
        assert step.loss_after < step.loss_before
    assert not np.array_equal(step.result.policy, start)


def test_nothing_is_kept_before_there_is_a_guarantee():
    assert initial_policy(settings(learning="certified"))[0] == -1
    assert initial_policy(settings(learning="paper"))[0] == 0.5


def test_noise_is_added_within_the_bounds():
    chosen = settings(privacy="local", privacy_clip=0.1, privacy_noise=1.0)
    start, policy = np.array([0.5]), np.array([0.52])
    rng = np.random.default_rng(0)
    sent = np.array([private_policy(chosen, policy, start, rng)[0] for _ in range(2000)])
    low, high = policy_bounds(chosen)
    assert (low <= sent).all() and (sent <= high).all()
    # Standard deviation 2 clip z = .2, bounds two and a half deviations away.
    assert sent.mean() == pytest.approx(0.52, abs=0.03) and sent.std() == pytest.approx(0.2, 0.1)
    plain = settings()
    assert private_policy(plain, policy, start, rng) is policy


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
        settings(**changes)
