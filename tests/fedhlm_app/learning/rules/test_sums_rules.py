"""Sums that clients send, and the thresholds that come of them."""

import numpy as np
import pytest

from clients.learning.feedback import Feedback
from clients.records import Stage, TokenRecords, Traffic
from fedhlm_app.client.routed import Routed, calibration_feedback
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.learning.rules.certified import GRID, Certified
from fedhlm_app.learning.rules.linear import Linear
from hlm.line import LineSums
from hlm.risk import RiskSums, conformal_threshold, learn_then_test
from hlm.risk.betting import log_terms
from hlm.risk.curves import UNIT
from tests.learning import feedback, settings_of


def certified(**changes) -> Certified:
    return Certified(settings_of(learning="certified", **changes))


def tokens(rows: int, seed: int, audit_rate: float = 1.0, prompts: int = 10) -> Feedback:
    rng = np.random.default_rng(seed)
    u = rng.random(rows)
    kept = u <= 0.5
    known = ~kept | (rng.random(rows) < audit_rate)
    return Feedback.create(
        u,
        (rng.random(rows) < u).astype(float),
        ratio_beta=np.clip(0.8 * u + 0.1 * rng.random(rows), 0, 1),
        kept=kept,
        known=known,
        weight=np.where(kept, 1 / audit_rate, 1.0),
        prompt=rng.integers(0, prompts, rows),
    )


def test_pooled_line_equals_least_squares_on_all_tokens() -> None:
    learning = Linear(settings_of(learning="linear"))
    clients = [tokens(80, seed) for seed in range(5)]
    pooled = LineSums.from_array(np.sum([learning.vector(client) for client in clients], axis=0))
    everything = Feedback.concatenate(clients)
    slope, intercept = np.polyfit(everything.u, everything.ratio_beta, 1)
    line = pooled.fit()
    assert line.slope == pytest.approx(slope) and line.intercept == pytest.approx(intercept)
    assert line.lower_share == pytest.approx(everything.below.mean())


def test_a_line_is_of_known_tokens_by_their_weight() -> None:
    feedback = tokens(200, 3, audit_rate=0.4)
    known = feedback.select(feedback.known)
    slope, intercept = np.polyfit(known.u, known.ratio_beta, 1, w=np.sqrt(known.weight))
    line = LineSums.from_array(Linear(settings_of(learning="linear")).vector(feedback)).fit()
    assert line.slope == pytest.approx(slope) and line.intercept == pytest.approx(intercept)


def test_pooled_curve_equals_brute_force() -> None:
    learning = certified()
    clients = [tokens(120, seed) for seed in range(4)]
    pooled = RiskSums.from_vector(np.sum([learning.vector(c) for c in clients], axis=0))
    expected, count = np.zeros(len(GRID)), 0
    for client in clients:
        for prompt in np.unique(client.prompt):
            rows = client.prompt == prompt
            count += 1
            for index, threshold in enumerate(GRID):
                kept = client.u[rows] <= threshold
                expected[index] += np.mean(kept * client.beta[rows])
    # Each client rounds up.
    assert (pooled.risk >= expected - 1e-9).all()
    np.testing.assert_allclose(pooled.risk, expected, atol=len(clients) * UNIT)
    assert pooled.prompts == count


def test_a_token_without_answer_counts_as_wrong() -> None:
    feedback = Feedback.create(
        [0.2, 0.2, 0.9], [0.0, np.nan, 0.0], known=[True, False, True], prompt=[0, 0, 0]
    )
    sums = RiskSums.from_vector(certified().vector(feedback))
    np.testing.assert_allclose(sums.risk, np.where(GRID >= 0.2, 1 / 3, 0.0), atol=UNIT)


def test_audited_curve_is_unbiased() -> None:
    # Mean of 3,000 prompts of 20 tokens, loss in [0, 5]: SD of the audited mean below
    # sqrt(5 / 60,000) = .0092, so .05 is over five of them (false alarm below 1e-6 a point).
    full = tokens(60_000, 1, 1.0, 3_000)
    rng = np.random.default_rng(2)
    audited = ~full.kept | (rng.random(len(full)) < 0.2)
    partial = Feedback.create(
        full.u,
        np.where(audited, full.beta, np.nan),
        ratio_beta=np.where(audited, full.ratio_beta, np.nan),
        kept=full.kept,
        known=audited,
        weight=np.where(full.kept, 5.0 * audited, 1.0),
        prompt=full.prompt,
    )
    learning = certified(audit_rate=0.2)
    assert learning.bound == 5.0
    exact = certified().risk_sums(full)
    estimate = learning.risk_sums(partial)
    np.testing.assert_allclose(estimate.risk / 3_000, exact.risk / 3_000, atol=0.05)
    assert 0.3 < conformal_threshold(estimate.risk, 3_000, GRID, 0.3, learning.bound) < 0.9


def test_weights_beyond_the_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="audit-rate"):
        certified(audit_rate=0.5).vector(tokens(50, 0, audit_rate=0.2))


def test_no_tokens_give_zero_sums() -> None:
    assert not certified().vector(Feedback.empty()).any()
    assert not Linear(settings_of(learning="linear")).vector(Feedback.empty()).any()


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
        ({"learning": "certified", "policy": "random"}, False, False),
    ],
)
def test_which_rules_need_sums(changes, sums, one_by_one):
    rule = sums_rule(settings_of(**changes))
    assert (rule is not None) == sums
    assert (rule is not None and rule.sequential) == one_by_one


def test_audits_take_the_place_of_readings():
    assert sums_rule(settings_of(learning="certified")).reads_kept_tokens
    audited = settings_of(learning="certified", audit_rate=0.25)
    assert not sums_rule(audited).reads_kept_tokens
    assert sums_rule(audited).bound == 4.0


def test_an_expected_risk_follows_from_the_levels_of_the_sequence():
    alpha, delta = sums_rule(settings_of(learning="certified", fidelity_budget=0.1)).levels
    assert (1 - delta) * alpha + delta <= 0.1
    assert sums_rule(
        settings_of(learning="certified-high-probability", fidelity_budget=0.1, confidence=0.2)
    ).levels == (0.1, 0.2)


@pytest.mark.parametrize("rule", ["certified", "certified-high-probability"])
def test_pooled_sums_of_clients_give_the_threshold_of_all_prompts(rule):
    chosen = settings_of(learning=rule, workload="score", fidelity_budget=0.2)
    calibration = sums_rule(chosen).calibration()
    replies = {s: as_arrays(sums_rule(chosen).sums(feedback(s))) for s in range(8)}
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
    chosen = settings_of(learning="linear", line_threshold=side)
    calibration = sums_rule(chosen).calibration()
    parts = [feedback(s) for s in range(3)]
    replies = {s: as_arrays(sums_rule(chosen).sums(part)) for s, part in enumerate(parts)}
    calibration.absorb(0, replies, range(3))
    whole = Feedback.concatenate(parts)
    slope, intercept = np.polyfit(whole.u, whole.ratio_beta, 1)
    level = 0.0 if side == "risk-averse" else whole.below.mean()
    assert calibration.result(0) == pytest.approx(np.clip((level - intercept) / slope, 0, 1))


def test_a_line_without_data_keeps_the_threshold():
    chosen = settings_of(learning="linear", initial_threshold=0.4)
    calibration = sums_rule(chosen).calibration()
    calibration.absorb(0, {0: {"line-sums": LineSums().to_array()}}, {0})
    assert calibration.result(0) == 0.4


def test_bets_are_about_what_the_policy_kept():
    chosen = settings_of(learning="certified-high-probability")
    data = feedback(1)
    found = sums_rule(chosen).sums(data)["wealth"]
    risk = [(data.beta * data.kept)[data.prompt == p].mean() for p in range(12)]
    assert np.allclose(found, log_terms(np.array(risk), 0.05))


@pytest.mark.parametrize("rule", ["linear", "certified"])
def test_a_device_sends_what_the_server_expects(rule):
    chosen = settings_of(learning=rule)
    for data in (feedback(), Feedback.empty()):
        found = sums_rule(chosen).sums(data)
        lengths = {name: len(value) for name, value in found.items()}
        assert lengths == sums_rule(chosen).calibration().lengths()


@pytest.mark.parametrize("rule", ["linear", "certified"])
def test_sums_of_real_prompts_are_possible(rule):
    chosen = settings_of(learning=rule, **ASKED)
    for seed in range(5):
        assert sums_rule(chosen).problem(as_arrays(sums_rule(chosen).sums(feedback(seed)))) == ""


def test_impossible_sums_are_named():
    chosen = settings_of(learning="certified", **ASKED)
    good = as_arrays(sums_rule(chosen).sums(feedback()))
    assert sums_rule(chosen).problem(good) == ""
    curve = good["risk-curve"]
    many = {**good, "risk-curve": curve * 1000}
    assert "at most 12 prompts" in sums_rule(chosen).problem(many)
    half = curve.astype(float)
    half[0] = 11.5
    assert "at most 12 prompts" in sums_rule(chosen).problem({**good, "risk-curve": half})
    falling = curve.copy()
    falling[5] -= 1e6
    assert sums_rule(chosen).problem({**good, "risk-curve": falling})
    rich = {**good, "wealth": good["wealth"] + 100}
    assert "'wealth' is no sum over 12 prompts" in sums_rule(chosen).problem(rich)
    assert sums_rule(chosen).problem({**good, "risk-curve": -curve})
    line = settings_of(learning="linear")
    assert sums_rule(line).problem({"line-sums": np.array([1.0, 5.0, 0, 1, 0, 0])})


@pytest.mark.parametrize("workload", ["generate", "score", "classify"])
@pytest.mark.parametrize("audit_rate", [0.0, 0.25])
def test_nobody_speaks_for_more_than_was_asked(workload, audit_rate):
    """As many prompts as were asked for are believed, one more is not."""
    chosen = settings_of(
        learning="certified-high-probability", workload=workload, audit_rate=audit_rate
    )
    asked, alpha = sums_rule(chosen).prompts, sums_rule(chosen).levels[0]
    assert asked == (30 if workload == "classify" else 3)
    for claimed, believed in ((asked, True), (asked + 1, False), (30, workload == "classify")):
        sums = {"risk-curve": RiskSums(np.zeros(len(GRID)), claimed).as_vector()}
        if workload == "generate":
            sums["wealth"] = log_terms(np.zeros(claimed), alpha, sums_rule(chosen).bound)
        assert (sums_rule(chosen).problem(sums) == "") == believed
    line = settings_of(learning="linear", workload=workload, audit_rate=audit_rate)
    most = 30 * sums_rule(line).bound
    for count, believed in ((most, True), (most + 1, False)):
        sums = {"line-sums": np.array([count, 0.5 * count, 0, 0.3 * count, 0, 0.0])}
        assert (sums_rule(line).problem(sums) == "") == believed


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
    chosen = settings_of(
        learning="certified-high-probability", audit_rate=audit_rate, fidelity_budget=0.3
    )
    routed, records = unresolved(audit_rate=audit_rate)
    if not read_later:
        silent = records.unresolved
        records.log_prob[silent], records.draft_choice[silent] = np.nan, -1
    found = as_arrays(sums_rule(chosen).sums(calibration_feedback(routed, chosen)))
    # Four tokens of ten; with audits a kept one as well, which stands for two.
    risk = 0.4 if not audit_rate else 0.4 + 0.1 / audit_rate
    bound = sums_rule(chosen).bound
    assert np.allclose(found["wealth"], log_terms(np.full(3, risk), 0.3, bound))
    curve = RiskSums.from_vector(found["risk-curve"])
    assert np.allclose(curve.risk / 3, risk, atol=1e-4)
    assert records.kept_loss(True)[records.unresolved].tolist() == [1.0] * records.unresolved.sum()


def test_what_a_cache_decided_is_nobodys_loss_at_the_candidate():
    """Hits have a rate of their own; unread ones are wrong only where a draft would be kept."""
    chosen = settings_of(learning="certified-high-probability", fidelity_budget=0.3)
    routed, records = unresolved(lost=0)
    records.stage[:, 9], records.log_prob[:, 9], records.draft_choice[:, 9] = (
        Stage.CACHE,
        np.nan,
        -1,
    )
    found = as_arrays(sums_rule(chosen).sums(calibration_feedback(routed, chosen)))
    assert np.allclose(found["wealth"], log_terms(np.zeros(3), 0.3))
    curve = RiskSums.from_vector(found["risk-curve"])
    assert np.allclose(curve.risk / 3, np.where(GRID >= 0.9, 0.1, 0.0), atol=1e-4)
