"""Losses and gradients of the threshold policy against autograd, and where descent goes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.learning.feedback import Feedback
from fedhlm_app.learning.rules import rule_of
from fedhlm_app.learning.rules.balanced import Balanced
from fedhlm_app.learning.rules.base import GradientRule
from fedhlm_app.learning.rules.paper import Paper
from fedhlm_app.learning.rules.primal_dual import DUAL_RATE, PrimalDual
from fedhlm_app.settings import Settings
from hlm.local_steps import local_steps


def made(rule: type[GradientRule], **changes) -> GradientRule:  # type: ignore[no-untyped-def]
    given = {"learning": rule.name, **changes}
    found = rule_of(Settings.from_sources({k.replace("_", "-"): v for k, v in given.items()}, {}))
    assert isinstance(found, rule)
    return found


def kept_risk(threshold: float, feedback: Feedback) -> float:
    return float(np.mean((feedback.u <= threshold) * feedback.weighted_beta))


def descended(
    learning: GradientRule,
    policy: np.ndarray,
    feedback: Feedback,
    learning_rate: float,
    steps: int = 1,
) -> np.ndarray:
    """Policy after descent on the rule's gradient, as a client does it."""
    result = local_steps(
        policy,
        lambda at: learning.gradient(at, feedback),
        steps,
        learning_rate,
        clip=learning.bounds,
    )
    return result.policy


def round_of_tokens(rows: int, seed: int, audit_rate: float = 1.0) -> Feedback:
    """Tokens with P(beta = 1 | u) = u; kept ones below .4 are known with ``audit_rate``."""
    rng = np.random.default_rng(seed)
    u = rng.random(rows)
    wrong = (rng.random(rows) < u).astype(np.float64)
    kept = u <= 0.4
    known = ~kept | (rng.random(rows) < audit_rate)
    return Feedback.create(
        u,
        wrong,
        ratio_beta=rng.random(rows),
        kept=kept,
        known=known,
        weight=np.where(kept, 1 / audit_rate, 1.0),
    )


def autograd_of(learning: GradientRule, policy: np.ndarray, feedback: Feedback) -> np.ndarray:
    """Gradient of the same losses written independently in torch."""
    theta = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    u = torch.tensor(feedback.u)
    beta = torch.tensor(np.where(feedback.known, feedback.beta, 0.0))
    ratio = torch.tensor(np.where(feedback.known, feedback.ratio_beta, 0.0))
    weight = torch.tensor(feedback.weight) * torch.tensor(feedback.known)
    chosen = learning.settings
    escalation = torch.sigmoid(chosen.gamma * (u - theta[0]))
    if isinstance(learning, Paper):
        sent = torch.tensor(feedback.known & ~feedback.kept)
        terms = (escalation * ((1 - ratio) ** 2 + chosen.transmission_penalty))[sent]
        loss = terms.sum() if chosen.reduction == "sum" else terms.mean()
    elif isinstance(learning, Balanced):
        terms = chosen.cost_transmit * escalation
        terms = terms + (1 - escalation) * chosen.cost_error * weight * beta
        loss = terms.sum() if chosen.reduction == "sum" else terms.mean()
    else:
        assert isinstance(learning, PrimalDual)
        risk = ((1 - escalation) * weight * beta).mean()
        loss = escalation.mean() + theta[1] * (risk - chosen.fidelity_budget)
    assert learning.loss(policy, feedback) == pytest.approx(loss.item(), abs=1e-9)
    loss.backward()
    assert theta.grad is not None
    return theta.grad.numpy()


@settings(max_examples=60, deadline=None)
@given(
    threshold=st.floats(0, 1),
    gamma=st.floats(0.1, 60),
    penalty=st.floats(0, 3),
    reduction=st.sampled_from(["sum", "mean"]),
    seed=st.integers(0, 2**31),
)
def test_paper_gradient_equals_autograd(threshold, gamma, penalty, reduction, seed) -> None:  # type: ignore[no-untyped-def]
    learning = made(Paper, gamma=gamma, transmission_penalty=penalty, reduction=reduction)
    feedback = round_of_tokens(40, seed, audit_rate=0.5)
    policy = np.array([threshold])
    np.testing.assert_allclose(
        learning.gradient(policy, feedback), autograd_of(learning, policy, feedback), atol=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(
    threshold=st.floats(0, 1),
    gamma=st.floats(0.1, 60),
    costs=st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)),
    reduction=st.sampled_from(["sum", "mean"]),
    seed=st.integers(0, 2**31),
)
def test_balanced_gradient_equals_autograd(threshold, gamma, costs, reduction, seed) -> None:  # type: ignore[no-untyped-def]
    sent, wrong = costs
    learning = made(
        Balanced, gamma=gamma, cost_transmit=sent, cost_error=wrong, reduction=reduction
    )
    feedback = round_of_tokens(40, seed, audit_rate=0.3)
    policy = np.array([threshold])
    np.testing.assert_allclose(
        learning.gradient(policy, feedback), autograd_of(learning, policy, feedback), atol=1e-9
    )


def test_primal_gradient_equals_autograd_and_dual_follows_the_hard_risk() -> None:
    learning = made(PrimalDual, fidelity_budget=0.1)
    feedback = round_of_tokens(200, 3, audit_rate=0.5)
    policy = np.array([0.35, 2.5])
    gradient = learning.gradient(policy, feedback)
    assert gradient[0] == pytest.approx(autograd_of(learning, policy, feedback)[0], abs=1e-9)
    assert gradient[1] == pytest.approx(-DUAL_RATE * (kept_risk(0.35, feedback) - 0.1), abs=1e-12)


def test_paper_loss_by_hand() -> None:
    feedback = Feedback.create([0.5, 0.7], [1.0, 0.0])
    escalation = 1 / (1 + np.exp(-10 * (np.array([0.5, 0.7]) - 0.6)))
    expected = escalation[0] * 0.01 + escalation[1] * 1.01
    assert made(Paper, reduction="sum").loss(np.array([0.6]), feedback) == pytest.approx(expected)


def test_paper_ignores_kept_and_unknown_tokens() -> None:
    sent = Feedback.create([0.9, 0.8], [0.2, 0.3])
    kept = Feedback.create([0.1], [1.0], kept=[True])
    peer = Feedback.create([0.7], [np.nan], known=[False])
    learning, policy = made(Paper, reduction="sum"), np.array([0.5])
    everything = Feedback.concatenate([sent, kept, peer])
    assert learning.loss(policy, everything) == learning.loss(policy, sent)
    assert learning.examples(everything) == 3


@settings(max_examples=50, deadline=None)
@given(threshold=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_paper_gradient_is_strictly_negative(threshold: float, seed: int) -> None:
    gradient = made(Paper, reduction="sum").gradient(
        np.array([threshold]), round_of_tokens(30, seed)
    )
    assert gradient[0] < 0


def test_literal_sum_overshoots_in_one_round_and_is_clipped() -> None:
    # The known trap: 600 transmitted tokens, eta = .01, from .30.
    rng = np.random.default_rng(0)
    feedback = Feedback.create(rng.uniform(0.3, 1.0, 600), rng.random(600))
    start = np.array([0.3])
    free = start - 0.01 * made(Paper, reduction="sum").gradient(start, feedback)
    assert free[0] > 1
    assert (
        descended(made(Paper, reduction="sum"), start, feedback, 0.01)[0] == 1.0 and start[0] == 0.3
    )
    assert 0.3 < descended(made(Paper), start, feedback, 0.01)[0] < 0.32


@pytest.mark.parametrize("learning", [made(Paper, reduction="sum"), made(Paper)])
def test_round_without_transmitted_tokens_changes_nothing(learning: GradientRule) -> None:
    kept = Feedback.create([0.1, 0.2], [0.0, 1.0], kept=[True, True])
    for feedback in (kept, Feedback.empty()):
        policy = np.array([0.4])
        assert descended(learning, policy, feedback, 1.0, steps=5).tolist() == [0.4]
        assert learning.loss(policy, feedback) == 0.0
    assert learning.examples(Feedback.empty()) == learning.examples(kept) == 0


@pytest.mark.parametrize("audit_rate", [1.0, 0.2])
def test_balanced_finds_where_wrong_costs_as_much_as_sending(audit_rate: float) -> None:
    # P(wrong | u) = u, so the optimum of a steep sigmoid is u = c_tx / c_err = .3. With 40,000
    # tokens the threshold's SD is about .01 (audits: .02); .08 is four of the larger.
    feedback = round_of_tokens(40_000, 11, audit_rate)
    learning = made(Balanced, gamma=30.0, cost_transmit=0.3, cost_error=1.0)
    for start in (0.1, 0.8):
        end = descended(learning, np.array([start]), feedback, 0.3, steps=800)
        assert end[0] == pytest.approx(0.3, abs=0.08)


def test_primal_dual_meets_its_budget() -> None:
    # P(wrong | u) = u: kept risk at th is th^2 / 2, so a budget of .08 means th = .4.
    learning = made(PrimalDual, fidelity_budget=0.08, gamma=30.0)
    policy = np.array([0.9, 1.0])
    trace = []
    for round_index in range(600):
        feedback = round_of_tokens(600, 100 + round_index)
        policy = descended(learning, policy, feedback, 0.05)
        trace.append(policy[0])
    assert np.mean(trace[300:]) == pytest.approx(0.4, abs=0.05)
    assert kept_risk(float(np.mean(trace[300:])), round_of_tokens(50_000, 1)) < 0.1


def test_empty_feedback_is_harmless_everywhere() -> None:
    empty = Feedback.empty()
    for rule in (Balanced, PrimalDual, Paper):
        learning = made(rule)
        policy = np.concatenate(list(learning.initial().values()))
        assert learning.loss(policy, empty) == 0.0
        gradient = learning.gradient(policy, empty)
        assert not gradient.any() and gradient.shape == learning.bounds[0].shape == policy.shape


def test_steepness_does_not_overflow() -> None:
    feedback = Feedback.create([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    with np.errstate(all="raise"):
        loss = made(Balanced, gamma=1e4, cost_transmit=1, cost_error=0).loss(
            np.array([0.5]), feedback
        )
    assert loss == 0.5
